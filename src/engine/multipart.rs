//! `multipart/form-data` (RFC 7578), as a server of files wants an upload.
//!
//! Written here since it is forty lines, and the crates that write it belong to another HTTP client or are no longer kept. The
//! boundary is drawn at random (122 bits), so no content is searched for it. Names are escaped as browsers do (the HTML
//! standard's rule, which RFC 7578 allows): a quote or a line break in one would end its header.

use bytes::Bytes;
use uuid::Uuid;

/// A form of text fields and one file, which is its last part.
#[derive(Debug, Clone)]
pub struct Multipart {
    boundary: String,
    head: Vec<u8>,
}

impl Multipart {
    /// An empty form.
    pub fn new() -> Self {
        Self::with_boundary(format!("millstream-{}", Uuid::new_v4().simple()))
    }

    fn with_boundary(boundary: String) -> Self {
        Self { boundary, head: Vec::new() }
    }

    /// The value of the header `Content-Type`.
    pub fn content_type(&self) -> String {
        format!("multipart/form-data; boundary={}", self.boundary)
    }

    /// With a text field more.
    #[must_use]
    pub fn field(mut self, name: &str, value: &str) -> Self {
        let Self { boundary, .. } = &self;
        let name = escaped(name);
        let part = format!("--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
        self.head.extend_from_slice(part.as_bytes());
        self
    }

    /// What stands before and after the content of a file, whose type is `kind`.
    fn around(&self, name: &str, filename: &str, kind: &str) -> (String, String) {
        let (Self { boundary, .. }, name, filename) = (self, escaped(name), escaped(filename));
        let before = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"{filename}\"\r\n\
             Content-Type: {kind}\r\n\r\n"
        );
        (before, format!("\r\n--{boundary}--\r\n"))
    }

    /// The whole form with a file as its last part, of about `length` bytes, which `read` appends to what is there already: so
    /// the content is in memory once.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn with_file<E>(
        self,
        name: &str,
        filename: &str,
        kind: &str,
        length: usize,
        read: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<Bytes, E> {
        let (before, after) = self.around(name, filename, kind);
        let mut body = self.head;
        body.reserve_exact(before.len() + length + after.len());
        body.extend_from_slice(before.as_bytes());
        read(&mut body)?;
        body.extend_from_slice(after.as_bytes());
        Ok(body.into())
    }
}

impl Default for Multipart {
    fn default() -> Self {
        Self::new()
    }
}

fn escaped(name: &str) -> String {
    name.replace('"', "%22").replace('\r', "%0D").replace('\n', "%0A")
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn file(content: &'static [u8]) -> impl FnOnce(&mut Vec<u8>) -> Result<(), Infallible> {
        move |body| {
            body.extend_from_slice(content);
            Ok(())
        }
    }

    #[test]
    fn a_form_is_written_as_the_standard_says() {
        let form = Multipart::with_boundary("b".to_owned()).field("purpose", "batch");
        assert_eq!(form.content_type(), "multipart/form-data; boundary=b");
        let body = form.with_file("file", "x.jsonl", "application/jsonl", 5, file(b"{\r\n}\n")).unwrap();
        assert_eq!(
            body,
            "--b\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n\
             --b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x.jsonl\"\r\n\
             Content-Type: application/jsonl\r\n\r\n{\r\n}\n\r\n--b--\r\n"
        );
    }

    #[test]
    fn a_name_cannot_end_its_header() {
        let form = Multipart::with_boundary("b".to_owned());
        let body = form.with_file("file", "a\"\r\nX: y", "t/p", 0, file(b"")).unwrap();
        assert!(
            body.starts_with(b"--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a%22%0D%0AX: y\"\r\n")
        );
    }

    #[test]
    fn every_form_has_a_boundary_of_its_own() {
        assert_ne!(Multipart::new().content_type(), Multipart::new().content_type());
    }
}
