SELECT {selected}
FROM read_csv(
    $file, compression = $compression, delim = $delimiter, quote = '"', escape = '"', header = true,
    columns = {columns}, auto_detect = false, max_line_size = $largest
)
