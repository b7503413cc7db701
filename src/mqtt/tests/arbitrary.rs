//! Packets and bytes at random.
