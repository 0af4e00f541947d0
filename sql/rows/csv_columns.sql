DESCRIBE SELECT *
FROM read_csv(
    $file, delim = $delimiter, quote = '"', escape = '"', header = true,
    all_varchar = true, max_line_size = $largest, null_padding = true, ignore_errors = true
)
