-- The readers' functions as the contract describes them, for a database whose migrations do not bring them yet. Delete
-- this folder and what applies it in conftest.py when they do: nothing else in the tests knows of it.
ALTER TABLE tokenfleet.refresh_schedule ADD COLUMN requested_at timestamptz;
CREATE OR REPLACE VIEW tokenfleet_v1.access_tokens AS
    SELECT a.id AS account_id, a.provider, a.environment, a.external_id, a.tenant, a.status,
           t.access_token, t.token_type, t.scope, t.expires_at, t.generation,
           a.variables || t.variables AS variables,
           NULL::integer AS data_key_id, a.status_reason, s.failing_since, s.last_error
    FROM tokenfleet.accounts a
    JOIN tokenfleet.token_sets t ON t.account_id = a.id
    LEFT JOIN tokenfleet.refresh_schedule s ON s.account_id = a.id;

CREATE FUNCTION tokenfleet.reader_asks(asked_for bigint, wanted interval, refused_generation bigint)
RETURNS TABLE (answer text, status text, status_reason text, generation bigint, expires_at timestamptz,
               retry_at timestamptz, last_error text)
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
BEGIN
    SELECT a.status, a.status_reason, t.generation, t.expires_at, s.last_error,
           CASE WHEN s.attempts > 0 THEN s.next_refresh_at END
    INTO status, status_reason, generation, expires_at, last_error, retry_at
    FROM tokenfleet.accounts a JOIN tokenfleet.token_sets t ON t.account_id = a.id
    JOIN tokenfleet.refresh_schedule s ON s.account_id = a.id WHERE a.id = asked_for;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF status NOT IN ('active', 'connecting') THEN
        answer := 'refused';
    ELSIF generation > refused_generation
       OR (refused_generation IS NULL AND COALESCE(expires_at - clock_timestamp() >= wanted, status = 'active')) THEN
        answer := 'fresh';
    ELSIF wanted > interval '2 hours' THEN
        answer := 'unreachable';
    ELSIF retry_at > clock_timestamp() THEN
        answer := 'waiting';
    ELSE
        answer := 'requested';
        UPDATE tokenfleet.refresh_schedule s
        SET requested_at = clock_timestamp(), next_refresh_at = LEAST(s.next_refresh_at, clock_timestamp())
        WHERE s.account_id = asked_for AND s.requested_at IS NULL;
        PERFORM pg_notify('tokenfleet_due', 'requested');
    END IF;
    RETURN NEXT;
END
$$;
CREATE FUNCTION tokenfleet_v1.request_refresh(account_id bigint, min_validity interval DEFAULT '30 seconds')
RETURNS TABLE (answer text, status text, status_reason text, generation bigint, expires_at timestamptz,
               retry_at timestamptz, last_error text)
LANGUAGE sql AS 'SELECT * FROM tokenfleet.reader_asks($1, $2, NULL)';
CREATE FUNCTION tokenfleet_v1.report_unauthorized(account_id bigint, generation bigint)
RETURNS TABLE (answer text, status text, status_reason text, generation bigint, expires_at timestamptz,
               retry_at timestamptz, last_error text)
LANGUAGE sql AS 'SELECT * FROM tokenfleet.reader_asks($1, NULL, $2)';
