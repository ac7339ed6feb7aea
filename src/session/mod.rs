//! Sessions.

mod code;
pub mod frame;

pub use code::{Advice, Code};
