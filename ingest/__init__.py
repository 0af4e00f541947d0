"""The model side: corpus, models, sparse autoencoders, energies, and the pipeline that fills a warehouse."""
