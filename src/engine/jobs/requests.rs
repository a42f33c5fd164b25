//! The lines of a file as whole requests, for those who read them and do not ask: to check a file, or to make a vendor's batch of it.
//! What a line means, and what is wrong with it, is what a run of the file would say.

use std::path::{Path, PathBuf};

use super::files::failed;
use super::input::BadLine;
use super::lines::Line;
use super::survey::{Input, id_of, open, read, text_of};
use super::usual::Usual;
use crate::engine::error::Error;

/// What holds for every line that does not say otherwise.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The model of lines that name none.
    pub model: Option<String>,
    /// The system message of shorthands without one.
    pub system: Option<String>,
    /// Settings of shorthands: the inside of a JSON object without its braces.
    pub fields: String,
}

/// A line as the whole request that it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The line, from 1.
    pub number: u64,
    /// Its name; where it has none, one that is made of what it asks.
    pub name: String,
    /// Whether the line names itself so.
    pub is_named: bool,
    /// What it asks, or why it is no request.
    pub content: Result<Content, String>,
}

/// What a line asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Below the base URL, without a version before it.
    pub path: String,
    /// What is sent there: JSON in `OpenAI`'s format, or Anthropic's for `params`.
    pub body: String,
    /// What comes back with the answer, as JSON.
    pub metadata: Option<String>,
}

impl Settings {
    /// The request that `text` is, as line `number` of something.
    pub fn read(&self, number: u64, text: &[u8]) -> Request {
        let length = text.len() as u64;
        self.of(Line { number, start: 0, length, is_whole: true, is_too_long: false }, text)
    }

    fn of(&self, line: Line, text: &[u8]) -> Request {
        let usual = Usual { model: self.model.as_deref(), system: self.system.as_deref(), fields: &self.fields };
        let entry = read(line, text);
        let (name, is_named) = id_of(&entry, text);
        let name = name.into_owned();
        let content = entry.map_err(|BadLine { reason, .. }| reason).and_then(|entry| {
            Ok(Content {
                body: usual.whole(&entry)?.into_owned(),
                path: entry.path.into_owned(),
                metadata: entry.metadata.map(std::borrow::Cow::into_owned),
            })
        });
        Request { number: line.number, name, is_named, content }
    }
}

/// The requests of a file, one after another.
#[derive(Debug)]
pub struct Requests {
    path: PathBuf,
    input: Input,
    settings: Settings,
}

impl Requests {
    /// Those of the file at `path`.
    ///
    /// # Errors
    /// A configuration error if it is no file that can be read.
    pub fn open(path: &Path, settings: Settings) -> Result<Self, Error> {
        let (input, _) = open(path, None)?;
        Ok(Self { path: path.to_owned(), input, settings })
    }

    /// The next line that is not blank.
    ///
    /// # Errors
    /// A journal error if the file can no more be read.
    pub fn next_request(&mut self) -> Result<Option<Request>, Error> {
        while let Some(line) = self.input.next().map_err(|error| failed(&self.path, "cannot be read", error))? {
            if let Some(text) = text_of(&self.input, line) {
                return Ok(Some(self.settings.of(line, text)));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::engine::jobs::folder::Folder;

    #[test]
    fn every_line_of_a_file_is_a_request_or_says_what_is_wrong() {
        let folder = Folder::new();
        let path = folder.path("in");
        let lines = [
            r#"{"custom_id":"a","prompt":"hi","row":1}"#,
            "",
            "no",
            r#"{"custom_id":"b","body":[]}"#,
            r#"{"prompt":"x"}"#,
        ];
        fs::write(&path, ["\u{feff}", &lines.join("\n")].concat()).unwrap();
        let settings = Settings { model: Some("m".to_owned()), ..Settings::default() };
        let mut requests = Requests::open(&path, settings.clone()).unwrap();
        let mut found = Vec::new();
        while let Some(request) = requests.next_request().unwrap() {
            found.push(request);
        }
        let numbers: Vec<_> =
            found.iter().map(|request| (request.number, request.is_named, request.content.is_ok())).collect();
        assert_eq!(numbers, [(1, true, true), (3, false, false), (4, true, false), (5, false, true)]);
        let first = found[0].content.clone().unwrap();
        assert_eq!((first.path.as_str(), first.metadata.as_deref()), ("chat/completions", Some(r#"{"row":1}"#)));
        assert_eq!(found[2].content, Err("body must be a JSON object".to_owned()));
        assert_eq!(settings.read(5, br#"{"prompt":"x"}"#), found[3]);
        assert!(found[3].name.starts_with("h-"));
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let folder = Folder::new();
        assert!(Requests::open(&folder.path("missing"), Settings::default()).is_err());
    }
}
