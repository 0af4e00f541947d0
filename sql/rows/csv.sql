SELECT {selected}
FROM read_csv(
    $file, delim = $delimiter, quote = '"', escape = '"', header = true,
    columns = {columns}, auto_detect = false, max_line_size = $largest
)
