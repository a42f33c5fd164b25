//! How a streamed answer is sent: its pieces, its pace, its writes, and what goes wrong on the way.

use std::io;
use std::time::Duration;

use bytes::Bytes;

use super::config::invalid;

/// Which events go out in one write.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Write {
    /// Each event is a chunk of the HTTP body; without a gap between them, several chunks share a write to the socket.
    #[default]
    Ready,
    /// Each event is a write to the socket.
    Event,
    /// So many bytes are a write to the socket, wherever that cuts an event, a line or a character.
    Bytes(usize),
    /// All events up to the next gap are one chunk and one write, up to a megabyte.
    All,
}

/// What ends a line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LineEnd {
    /// `\n`, as providers do.
    #[default]
    Lf,
    /// `\r\n`
    CrLf,
    /// `\r`
    Cr,
}

impl LineEnd {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Lf => "\n",
            Self::CrLf => "\r\n",
            Self::Cr => "\r",
        }
    }
}

/// What goes wrong with a stream once [`Streaming::after`] events are out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamFault {
    /// The body ends there, in good order.
    End,
    /// The body ends in the middle of the next event, in good order.
    EndInEvent,
    /// The same, with the first byte of a character of two.
    EndInCharacter,
    /// The connection is closed (FIN), the body has no end.
    Close,
    /// The connection is reset (RST).
    Reset,
    /// Silence, until the client leaves or the server is stopped.
    Stall,
    /// An error event ([`Streaming::error`]), and the body ends.
    Error,
    /// An event whose data is no JSON; the others follow.
    BadJson,
    /// One line that never ends.
    EndlessLine,
    /// Comments without end, [`Streaming::gaps`] apart.
    EndlessComments,
    /// The event that says why the answer ends is left out. `after` does not count.
    NoFinish,
    /// The end marker (`[DONE]`, `message_stop`) is left out. `after` does not count.
    NoDone,
    /// Silence after the end marker: the body never ends. `after` does not count.
    NeverEnds,
    /// Bytes that are no event after the end marker. `after` does not count.
    Garbage,
    /// The whole answer as JSON, as if it had not been asked to stream. `after` does not count.
    Json,
}

/// How a streamed answer is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Streaming {
    /// Pieces of each text: its words, over and over until there are so many, or the first so many of them.
    /// Default: each word once.
    pub chunks: Option<u64>,
    /// Wait between the head and the first event. Default: none.
    pub first: Duration,
    /// Waits between two events, in order; the last one is that of all further events. Default: none.
    pub gaps: Vec<Duration>,
    /// Which events go out in one write.
    pub write: Write,
    /// What ends a line.
    pub line_end: LineEnd,
    /// A comment (in Anthropic's API a `ping`) after so long a silence; zero: before every event. Default: none.
    pub keep_alive: Option<Duration>,
    /// The comment's text.
    pub comment: String,
    /// What goes wrong. Default: nothing.
    pub fault: Option<StreamFault>,
    /// Events that go out before `fault`. Default 1.
    pub after: u64,
    /// Data of the event of [`StreamFault::Error`]. Default: an error of the server's in the API's form.
    pub error: Option<Bytes>,
}

impl Default for Streaming {
    fn default() -> Self {
        Self {
            chunks: None,
            first: Duration::ZERO,
            gaps: Vec::new(),
            write: Write::Ready,
            line_end: LineEnd::Lf,
            keep_alive: None,
            comment: "keep-alive".to_owned(),
            fault: None,
            after: 1,
            error: None,
        }
    }
}

impl Streaming {
    /// This fault once `after` events are out.
    pub fn fault(fault: StreamFault, after: u64) -> Self {
        Self { fault: Some(fault), after, ..Self::default() }
    }

    /// The wait before the event with this number, from 0.
    pub(super) fn gap_before(&self, event: u64) -> Duration {
        if event == 0 {
            return self.first;
        }
        let place = usize::try_from(event - 1).unwrap_or(usize::MAX);
        self.gaps.get(place).or(self.gaps.last()).copied().unwrap_or_default()
    }

    /// Refuse what could never work.
    ///
    /// # Errors
    /// `InvalidInput`, with the name of what is wrong.
    pub fn check(&self) -> io::Result<()> {
        if self.write == Write::Bytes(0) {
            return Err(invalid("write must be at least 1 byte"));
        }
        if self.comment.contains(['\r', '\n']) {
            return Err(invalid("comment must be one line"));
        }
        Ok(())
    }
}
