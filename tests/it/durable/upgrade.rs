//! Upgrade
