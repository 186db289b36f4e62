-- A role for services that read access tokens: two views, the functions of the contract, and nothing else.
--
--   psql "$OWNER_URL" -v reader=billing -f deploy/postgres/reader.sql
--   psql "$OWNER_URL" -v reader=acme_sync -v tenant=acme -f deploy/postgres/reader.sql
--
-- With 'tenant' the role sees that tenant's accounts only; run it once for each where there are several. Whom it has
-- limited it never widens: without 'tenant' it leaves such a role as it is. To widen one, delete its rows from
-- tokenfleet.readers first. 'connections' limits how many it may hold (50 where nothing is said).
--
-- Run it as who owns the schema and may create roles, after 'tokenfleet db upgrade' and after deploy/postgres/roles.sql;
-- it can be repeated at any time. Give the role a password, or another way in, yourself. Two things concern the whole
-- database: nobody may make temporary tables any more but the owner and whom it grants that (the fleet makes none), and,
-- where a superuser runs this, nobody but superusers may make large objects.
\set ON_ERROR_STOP on
\if :{?reader}
\else
    \set VERBOSITY terse
    DO $$ BEGIN RAISE 'the role is not named: psql "$OWNER_URL" -v reader=NAME -f deploy/postgres/reader.sql'; END $$;
\endif
\if :{?connections}
\else
    \set connections 50
\endif
\if :{?tenant}
    \set is_limited true
\else
    \set is_limited false
    \set tenant ''
\endif
SET client_min_messages = warning;
BEGIN;
SELECT format('CREATE ROLE %I LOGIN', :'reader')
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'reader') \gexec
ALTER ROLE :"reader" NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS CONNECTION LIMIT :connections;
-- What a session sets for itself is its own affair; these keep an honest one from being a burden.
ALTER ROLE :"reader" SET search_path = tokenfleet_v1;
ALTER ROLE :"reader" SET statement_timeout = '5s';
ALTER ROLE :"reader" SET lock_timeout = '1s';
ALTER ROLE :"reader" SET idle_in_transaction_session_timeout = '10s';

SELECT format('REVOKE TEMPORARY, CREATE ON DATABASE %I FROM PUBLIC', current_database()) \gexec
SELECT format('REVOKE TEMPORARY, CREATE ON DATABASE %I FROM %I', current_database(), :'reader') \gexec
-- Before Postgres 15 everybody could create in it.
SELECT 'REVOKE CREATE ON SCHEMA public FROM PUBLIC' FROM pg_namespace
WHERE nspname = 'public' AND has_schema_privilege(current_user, oid, 'CREATE WITH GRANT OPTION') \gexec
SELECT format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', oid::regprocedure)
FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND proname IN ('lo_creat', 'lo_create', 'lo_from_bytea')
  AND (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) \gexec

REVOKE ALL ON SCHEMA tokenfleet FROM :"reader";
REVOKE ALL ON ALL TABLES IN SCHEMA tokenfleet, tokenfleet_v1 FROM :"reader";
REVOKE ALL ON ALL SEQUENCES IN SCHEMA tokenfleet FROM :"reader";
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA tokenfleet, tokenfleet_v1 FROM :"reader";
GRANT USAGE ON SCHEMA tokenfleet_v1 TO :"reader";
GRANT SELECT ON tokenfleet_v1.access_tokens, tokenfleet_v1.access_keys TO :"reader";
-- Those of the functions that this release has.
SELECT format('GRANT EXECUTE ON FUNCTION %s TO %I', oid::regprocedure, :'reader')
FROM pg_proc WHERE pronamespace = 'tokenfleet_v1'::regnamespace
  AND proname IN ('request_refresh', 'report_unauthorized', 'report_unsealings') \gexec

DELETE FROM tokenfleet.readers WHERE reader = :'reader' AND tenant IS NULL AND :is_limited;
INSERT INTO tokenfleet.readers (reader, tenant)
SELECT :'reader', CASE WHEN :is_limited THEN :'tenant' END
WHERE :is_limited OR NOT EXISTS (SELECT FROM tokenfleet.readers WHERE reader = :'reader')
ON CONFLICT DO NOTHING;
COMMIT;
