//! The Python module: a table of contents.

use pyo3::prelude::*;

mod mock;

#[pymodule(gil_used = false)]
mod _millstream {
    #[pymodule_export]
    const BUILD: &str = "x";
    #[pymodule_export]
    use super::mock::{MockServer, MockStats, RecordedRequest};
}
