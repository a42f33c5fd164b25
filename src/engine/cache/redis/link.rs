//! One connection to a Redis, made when it is needed and again when it has ended.
//!
//! Those who ask at the same time share it, and what they ask goes out together. A server that cannot be had is left alone for a
//! while, in which everybody goes without it at once; then it is tried beside the calls, none of which waits for that.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{AsyncConnectionConfig, Pipeline, RedisError, Value};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::{AbortHandle, yield_now};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::Address;
use crate::engine::error::Error;
use crate::engine::retry::{Backoff, Jitter};
use crate::engine::transport::Tls;
use crate::traffic::Traffic;

/// The most a connection takes to be made, its login included.
const CONNECT: Duration = Duration::from_secs(1);

/// How long a server is left alone that cannot be had: about a second, then longer each time.
const PAUSES: Backoff = Backoff {
    base_delay: Duration::from_secs(1),
    max_delay: Duration::from_secs(30),
    exponential_base: 2.0,
    jitter: Jitter::Equal,
};

/// A connection to be had.
pub(super) struct Link {
    address: Address,
    tls: Option<TlsConnector>,
    state: Mutex<State>,
}

struct State {
    stage: Stage,
    /// Since it last answered.
    failures: u32,
    /// Connections so far.
    made: u64,
}

enum Stage {
    /// Nobody has needed it yet, or it has ended as connections do.
    Unmade,
    /// It is being made, by whoever waits for it.
    Coming(Shared<BoxFuture<'static, Result<Line, String>>>),
    Up(Line),
    /// It cannot be had, and is not tried again before that time.
    Down {
        until: Instant,
        why: String,
    },
}

/// A connection, until its last clone is dropped.
#[derive(Clone)]
struct Line {
    connection: MultiplexedConnection,
    number: u64,
    _driver: Arc<Driver>,
}

/// The task that moves its bytes.
struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Link {
    /// A link to `address`, not yet made.
    ///
    /// # Errors
    /// An internal error if TLS cannot be set up.
    pub(super) fn new(address: &Address) -> Result<Self, Error> {
        let tls = if address.is_tls { Some(TlsConnector::from(Arc::new(Tls::new()?.plain()))) } else { None };
        let state = State { stage: Stage::Unmade, failures: 0, made: 0 };
        Ok(Self { address: address.clone(), tls, state: Mutex::new(state) })
    }

    /// What the server says to `questions`, one value for each; an error that it says of one of them is such a value.
    ///
    /// Who `insists` tries also while the server is left alone.
    ///
    /// # Errors
    /// Why there is no answer, without a secret. A server that does not answer is left alone from then on.
    pub(super) async fn ask(
        self: &Arc<Self>,
        questions: &Pipeline,
        most: Duration,
        insists: bool,
    ) -> Result<Vec<Value>, String> {
        let mut is_second = false;
        loop {
            let mut line = self.line(insists).await?;
            let _held = Traffic::hold(most);
            let count = questions.len();
            let why = match within(most, line.connection.req_packed_commands(questions, 0, count)).await {
                Some(Ok(answers)) if answers.len() == count => {
                    self.lock().failures = 0;
                    return Ok(answers);
                }
                Some(Ok(_)) => "it did not answer as a Redis does".to_owned(),
                // It was closed while nobody used it: that says nothing of the server.
                Some(Err(error)) if error.is_connection_dropped() && !is_second => {
                    self.has_ended(line.number);
                    is_second = true;
                    continue;
                }
                Some(Err(error)) => describe(&error),
                None => format!("no answer within {} s", most.as_secs_f64()),
            };
            self.fails(line.number, &why);
            return Err(why);
        }
    }

    /// The connection, made if need be.
    async fn line(self: &Arc<Self>, insists: bool) -> Result<Line, String> {
        let coming = {
            let mut state = self.lock();
            match &mut state.stage {
                Stage::Up(line) => return Ok(line.clone()),
                Stage::Coming(coming) => coming.clone(),
                Stage::Down { until, why } if !insists => {
                    let (now, why) = (Instant::now(), why.clone());
                    if *until <= now {
                        // One try at a time.
                        *until = now + PAUSES.max_delay;
                        tokio::spawn(Arc::clone(self).make());
                    }
                    return Err(why);
                }
                Stage::Unmade | Stage::Down { .. } => {
                    let coming = Arc::clone(self).make().boxed().shared();
                    state.stage = Stage::Coming(coming.clone());
                    coming
                }
            }
        };
        coming.await
    }

    async fn make(self: Arc<Self>) -> Result<Line, String> {
        let _held = Traffic::hold(CONNECT);
        let late = || Err(format!("no connection within {} s", CONNECT.as_secs_f64()));
        let made = within(CONNECT, self.connect()).await.unwrap_or_else(late);
        let mut state = self.lock();
        match made {
            Ok((connection, driver)) => {
                state.made += 1;
                let line = Line { connection, number: state.made, _driver: Arc::new(driver) };
                state.stage = Stage::Up(line.clone());
                Ok(line)
            }
            Err(why) => {
                state.is_down(&why);
                Err(why)
            }
        }
    }

    async fn connect(&self) -> Result<(MultiplexedConnection, Driver), String> {
        let failed = |error: std::io::Error| error.to_string();
        let tcp = TcpStream::connect((self.address.host.as_str(), self.address.port)).await.map_err(failed)?;
        tcp.set_nodelay(true).map_err(failed)?;
        let Some(tls) = &self.tls else { return self.log_in(tcp).await };
        let name = ServerName::try_from(self.address.host.clone()).map_err(|error| error.to_string())?;
        self.log_in(tls.connect(name, tcp).await.map_err(failed)?).await
    }

    async fn log_in<S>(&self, stream: S) -> Result<(MultiplexedConnection, Driver), String>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        // Time is kept here, for all of a question.
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let login = self.address.login();
        let made = MultiplexedConnection::new_with_config(&login, stream, config).await;
        let (connection, driver) = made.map_err(|error| describe(&error))?;
        Ok((connection, Driver(tokio::spawn(driver).abort_handle())))
    }

    fn has_ended(&self, number: u64) {
        let mut state = self.lock();
        if state.is_up(number) {
            state.stage = Stage::Unmade;
        }
    }

    fn fails(&self, number: u64, why: &str) {
        let mut state = self.lock();
        if state.is_up(number) {
            state.is_down(why);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether that connection is the one in use: another may have taken its place.
    fn is_up(&self, number: u64) -> bool {
        matches!(&self.stage, Stage::Up(line) if line.number == number)
    }

    fn is_down(&mut self, why: &str) {
        let pause = PAUSES.delay(self.failures, &mut fastrand::Rng::new());
        self.failures = self.failures.saturating_add(1);
        self.stage = Stage::Down { until: Instant::now() + pause, why: why.to_owned() };
    }
}

/// What `work` gives, if it does in time. An engine that was kept from running looks at what has come meanwhile before it says that
/// nothing came.
async fn within<T>(most: Duration, work: impl Future<Output = T>) -> Option<T> {
    let mut work = std::pin::pin!(work);
    if let Ok(done) = timeout(most, &mut work).await {
        return Some(done);
    }
    yield_now().await;
    work.now_or_never()
}

/// What went wrong, without the server's own words: it repeats what it does not understand, passwords as well.
fn describe(error: &RedisError) -> String {
    match error.code() {
        Some(code) => refusal(code),
        None if error.is_connection_dropped() => "it closed the connection".to_owned(),
        None => error.category().to_owned(),
    }
}

/// An error of the server's, by the word that it begins with.
pub(super) fn refusal(code: &str) -> String {
    let is_word = code.len() <= 32 && code.bytes().all(|byte| byte.is_ascii_uppercase());
    format!("it answered {}", if is_word { code } else { "with an error" })
}
