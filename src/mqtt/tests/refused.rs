//! Packets that the specification forbids, each with the statement that forbids it.
