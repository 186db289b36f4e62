-- Two roles for one database: an owner that migrates, and the one that the fleet and its operators connect as.
--
-- With one role for everything that role owns the audit log, and could lift the protection that keeps it append-only.
-- With these two it cannot: it may read and add rows, and neither change, delete, truncate, alter nor drop them, nor
-- choose the id, the moment, the role or the address of one. Of the counts of openings (unsealings) triggers let it
-- raise what is of the last two hours, and delete what is older than a week.
--
--   psql "$OWNER_URL" -v owner=tokenfleet_owner -v app=tokenfleet_app -f deploy/postgres/roles.sql
--
-- Run it as the owner's superuser (or as a role that may create roles and holds both), once after the first
-- 'tokenfleet db upgrade'; it can be repeated at any time. From then on connect as :app for everything but
-- 'db upgrade', which connects as :owner: what that makes, :app may use at once. 'tokenfleet db check' and 'tokenfleet
-- doctor' say when something was made by another role, and this has to be run again. Give both a password, or another
-- way in, yourself.
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
-- The same for whatever later migrations make.
ALTER DEFAULT PRIVILEGES FOR ROLE :"owner" IN SCHEMA tokenfleet
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO :"app";
ALTER DEFAULT PRIVILEGES FOR ROLE :"owner" IN SCHEMA tokenfleet GRANT USAGE ON SEQUENCES TO :"app";
ALTER DEFAULT PRIVILEGES FOR ROLE :"owner" IN SCHEMA tokenfleet_v1 GRANT SELECT ON TABLES TO :"app";
REVOKE INSERT, UPDATE, DELETE ON tokenfleet.alembic_version FROM :"app";
REVOKE ALL ON tokenfleet.audit_log FROM :"app", :"owner";
REVOKE ALL ON SEQUENCE tokenfleet.audit_log_id_seq FROM :"app";
GRANT SELECT, INSERT (actor, host, action, target, reason, detail) ON tokenfleet.audit_log TO :"app", :"owner";
COMMIT;
