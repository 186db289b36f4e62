-- As request_refresh.sql, for the function that a reader tells its unsealings to.
CREATE TABLE tokenfleet.unsealings (caller text, purpose text, opened bigint);
CREATE FUNCTION tokenfleet_v1.report_unsealings(caller text, purpose text, opened integer) RETURNS void
LANGUAGE sql AS 'INSERT INTO tokenfleet.unsealings VALUES ($1, $2, $3)';
