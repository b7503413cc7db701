//! What two peers remember of each other: the machines that broker and client share.
