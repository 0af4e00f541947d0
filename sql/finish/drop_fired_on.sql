DROP TABLE fired_on
