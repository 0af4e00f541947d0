SELECT json IS NULL, json_keys(json), json_type(json, $text), json ->> $text, json ->> $category, json ->> $id
FROM read_json_objects(
    $file, format = 'newline_delimited', maximum_object_size = $largest,
    ignore_errors = true
)
