-- Two roles for one database: an owner that migrates, and the one that the fleet and its operators connect as.
--
-- With one role for everything that role owns the audit log, and could lift the protection that keeps it append-only.
-- With these two it cannot: it may read and add rows, and neither change, delete, truncate, alter nor drop them.
--
--   psql "$OWNER_URL" -v owner=tokenfleet_owner -v app=tokenfleet_app -f deploy/postgres/roles.sql
--
-- Run it as the owner's superuser (or as a role that may create roles and holds both), once after the first
-- 'tokenfleet db upgrade' and again after each later one; it can be repeated at any time. From then on connect as
-- :app for everything but 'db upgrade', which connects as :owner. Give both a password, or another way in, yourself.
\set ON_ERROR_STOP on
SET client_min_messages = warning;
BEGIN;
SELECT format('CREATE ROLE %I LOGIN', role) FROM unnest(ARRAY[:'owner', :'app']) AS role
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) \gexec
-- The owner may do to the app's tables what the app may: migrate them.
GRANT :"app" TO :"owner";

ALTER SCHEMA tokenfleet OWNER TO :"owner";
SELECT format('ALTER %s %s OWNER TO %I', CASE relkind WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END, c.oid::regclass, :'owner')
FROM pg_class c WHERE relnamespace IN ('tokenfleet'::regnamespace, 'tokenfleet_v1'::regnamespace)
  AND relkind IN ('r', 'p', 'v') \gexec
-- Readers' functions run as whoever owns them: the owner too, and not the superuser that migrated.
SELECT format('ALTER FUNCTION %s OWNER TO %I', oid::regprocedure, :'owner')
FROM pg_proc WHERE pronamespace IN ('tokenfleet'::regnamespace, 'tokenfleet_v1'::regnamespace) \gexec
ALTER SCHEMA tokenfleet_v1 OWNER TO :"owner";

-- The scheduler makes and drops the partitions of the history, so the app owns that table and those in it.
SELECT format('ALTER TABLE %s OWNER TO %I', oid::regclass, :'app') FROM pg_class
WHERE oid = 'tokenfleet.account_events'::regclass
   OR oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'tokenfleet.account_events'::regclass) \gexec

GRANT USAGE, CREATE ON SCHEMA tokenfleet TO :"app";
GRANT USAGE ON SCHEMA tokenfleet_v1 TO :"app";
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA tokenfleet TO :"app";
GRANT SELECT ON ALL TABLES IN SCHEMA tokenfleet_v1 TO :"app";
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA tokenfleet_v1 TO :"app";
GRANT USAGE ON ALL SEQUENCES IN SCHEMA tokenfleet TO :"app";
REVOKE INSERT, UPDATE, DELETE ON tokenfleet.alembic_version FROM :"app";
REVOKE ALL ON tokenfleet.audit_log FROM :"app", :"owner";
GRANT SELECT, INSERT ON tokenfleet.audit_log TO :"app", :"owner";
COMMIT;
