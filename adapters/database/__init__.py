"""A metadata database, of the gateway or of the trainer: SQLAlchemy over a SQLite file or a PostgreSQL server.

database.py       units of work, each a transaction of its own; the same for both
backend.py        what the two must be able to do
sqlite.py         the file, by default
postgresql.py     the server, where a URL is set; imports psycopg only then
sockets.py        connections that do not answer any more
resync.py         has what is kept in memory read again after an answer that was lost
tenancy.py        one gateway, and one trainer, a server's schema
migrations.py     Alembic, from the script directory of gateway or trainer
types.py          column types that mean the same in both
authorization.py  who may see a row, as a condition
sql.py            what the two dialects say differently: upserts, globs, JSON
urls.py           what a URL names; light enough for settings, so nothing is imported here
"""
