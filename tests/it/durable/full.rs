//! Disk full
