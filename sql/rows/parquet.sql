SELECT {selected} FROM read_parquet($file)
