-- Texts of tokens that stand together, joined: bytes of characters that were split between tokens, written <0xE6>, become
-- these characters again; those whose other bytes are out of sight stay as they are.
CREATE OR REPLACE MACRO joined_text(texts) AS
    array_to_string(
        list_transform(
            regexp_extract_all(texts, '(?:<0x[0-9A-F]{2}>)+|[^<]+|<'),
            lambda part: CASE
                WHEN regexp_full_match(part, '(?:<0x[0-9A-F]{2}>)+')
                    THEN coalesce(TRY(decode(unhex(regexp_replace(part, '<0x|>', '', 'g')))), part)
                ELSE part
            END
        ),
        ''
    );
COMMENT ON MACRO joined_text IS 'joined_text(texts): a string of token texts with the characters that were split between tokens put together again.';
