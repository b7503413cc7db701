//! Tasks, timeouts and sockets around the broker.
