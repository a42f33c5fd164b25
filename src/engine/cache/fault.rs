//! What went wrong with a store is told once: no call fails of it, and none is told twice.

/// The first fault, until it is told.
#[derive(Debug, Default)]
pub(super) struct Fault {
    told: bool,
    news: Option<String>,
}

impl Fault {
    /// Something went wrong.
    pub(super) fn tell(&mut self, text: &str) {
        if !self.told {
            (self.told, self.news) = (true, Some(format!("cache: {text}")));
        }
    }

    /// What was not told yet.
    pub(super) fn take(&mut self) -> Option<String> {
        self.news.take()
    }
}
