"""The run as pages: rows of the warehouse in, contexts of templates out, and a folder of plain files.

`pages` and `documents` say what a page shows, templates how it looks, `writing` where it goes. A server has the first
two as they are.
"""
