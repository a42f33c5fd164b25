//! The Python module: a table of contents.

use pyo3::prelude::*;

#[pymodule(gil_used = false)]
mod _millstream {
    #[pymodule_export]
    const BUILD: &str = "x";
}
