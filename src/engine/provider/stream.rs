//! A provider's stream as the chunks of `OpenAI`'s.

use bytes::Bytes;

use super::{Format, Provider, anthropic, mistral, openai};

/// What one event of a stream is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The body of a `chat.completion.chunk`, or of an error (`{"error": …}`).
    Chunk(Bytes),
    /// Nothing to be handed on.
    Nothing,
    /// The provider's own mark of a complete stream: `[DONE]`, or `message_stop`.
    End,
}

/// Reads one stream.
#[derive(Debug)]
pub struct StreamReader(Reader);

#[derive(Debug)]
enum Reader {
    OpenAi,
    Anthropic(Box<anthropic::Reader>),
    Mistral,
}

impl StreamReader {
    /// For a stream that has not begun.
    pub fn new(provider: Provider) -> Self {
        Self(match provider.format() {
            Format::OpenAi => Reader::OpenAi,
            Format::Anthropic => Reader::Anthropic(Box::default()),
            Format::Mistral => Reader::Mistral,
        })
    }

    /// The next event of the stream: its name, if it has one, and its data.
    pub fn event(&mut self, name: Option<&str>, data: &Bytes) -> Step {
        match &mut self.0 {
            Reader::OpenAi => openai::event(name, data),
            Reader::Anthropic(reader) => reader.event(data),
            Reader::Mistral => mistral::event(name, data),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_of_openais_passes_untouched_until_its_mark_of_the_end() {
        let mut reader = StreamReader::new(Provider::OpenAi);
        let chunk = Bytes::from_static(b"{\"choices\":[]}");
        assert_eq!(reader.event(None, &chunk), Step::Chunk(chunk));
        assert_eq!(reader.event(None, &Bytes::new()), Step::Nothing);
        assert_eq!(reader.event(None, &Bytes::from_static(b"[DONE] ")), Step::End);
    }

    #[test]
    fn an_error_event_is_an_error_whatever_its_data() {
        for (data, expected) in [
            (r#"{"error":{"message":"m"}}"#, r#"{"error":{"message":"m"}}"#),
            (r#"{"message":"m"}"#, r#"{"error":{"message":"m"}}"#),
            ("boom", r#"{"error":{"message":"boom"}}"#),
        ] {
            let step = StreamReader::new(Provider::OpenAi).event(Some("error"), &Bytes::from(data));
            assert_eq!(step, Step::Chunk(Bytes::from(expected)));
        }
    }
}
