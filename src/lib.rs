//! millstream: any number of prompts through LLM APIs, every answer back exactly once.
//!
//! [`engine`] is the whole product without Python, [`mock`] a loopback server for tests and benchmarks, `traffic` what lets
//! both run on a clock that does not really pass, and `py` (feature `python`) the only place that knows pyo3.

pub mod engine;
pub mod mock;
#[cfg(feature = "python")]
mod py;
pub mod traffic;
