-- Every kind of value that the formats treat in a way of their own.
SELECT * REPLACE (single::FLOAT AS single)
FROM (
    VALUES
        (
            1, 'plain', 0.1::FLOAT, 1.5::DOUBLE, 1.10::DECIMAL(9, 3), 170141183460469231731687303715884105727::HUGEINT,
            true, DATE '2026-01-02', TIMESTAMP '2026-01-02 03:04:05.678', TIMESTAMP_NS '2026-01-02 03:04:05.123456789',
            INTERVAL '1 month 2 days', '\xAA\x01'::BLOB, [0.1::FLOAT, NULL], {'name': 'x', 'at': DATE '2026-01-02'},
            MAP {'k': 1}
        ),
        (
            2, E'a,"b"|*c*\n<d>\t', 'nan', '-inf', 0, -1, false, NULL, NULL, NULL, INTERVAL '-1 second', ''::BLOB, [],
            {'name': NULL, 'at': NULL}, MAP {}
        ),
        (3, '', NULL, 1e300, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
        (4, 'Größe 語 e_f _g_', 1e20, '-0.0'::DOUBLE, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)
) AS t (
    id, words, single, double, decimal, huge, flag, day, moment, nanosecond, span, bytes, list, struct, map
)
ORDER BY id
