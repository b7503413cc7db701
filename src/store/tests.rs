//! The store against a model, on a disk that fails and forgets, and on the real one.

mod damage;
mod faults;
mod order;
mod space;
mod threads;
mod world;
