//! The broker: routing and policy behind a few synchronous calls.
