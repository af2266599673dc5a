-- One row about the file itself. A program that finds a schema_version above its own refuses the file.
CREATE TABLE store (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    schema_version INTEGER NOT NULL,
    revision INTEGER NOT NULL,  -- of the last change of any key
    trimmed INTEGER NOT NULL    -- changes up to and including this revision are gone from the log
) STRICT;

CREATE TABLE records (
    key TEXT PRIMARY KEY,
    value BLOB NOT NULL,
    revision INTEGER NOT NULL
) STRICT;

-- The change log that watches read; value is NULL for a deletion.
CREATE TABLE changes (
    revision INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    value BLOB
) STRICT;

CREATE TABLE acknowledgements (
    watcher TEXT PRIMARY KEY,
    revision INTEGER NOT NULL,
    expires_at REAL NOT NULL    -- Unix seconds
) STRICT;
