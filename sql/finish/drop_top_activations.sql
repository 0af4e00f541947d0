DROP TABLE fired;
DROP TABLE strongest
