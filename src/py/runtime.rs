//! The engine's thread: one current-thread tokio runtime, started at the first request and leaked on purpose.
//!
//! It never attaches to Python, so a busy interpreter cannot delay it and an exiting one cannot hang on it. Work comes in through
//! one channel, which wakes the thread only when it sleeps: a burst of submissions costs one wake-up.

use std::future::Future;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{AbortHandle, AbortRegistration, Abortable};
use pyo3::prelude::*;
use tokio::runtime::{Builder, Handle};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::yield_now;

use super::errors;
use super::log;
use super::process::{self, PerProcess};
use crate::engine::error::Error;
use crate::engine::stream::puts_here;
use crate::engine::transport::Tls;
use crate::traffic::Traffic;

/// Work under way, and what becomes of its outcome.
pub(crate) type Job = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Host names are resolved on threads of their own; this many are enough and 512, tokio's default, too many.
const RESOLVER_THREADS: usize = 8;

/// How often a blocking call looks for signals, so that Ctrl-C ends it.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(50);

/// Turns of the engine, of some dozens of tasks each, that a ring waits for at most while streams find more to read: a
/// millisecond or two. Where nothing more comes it waits for one.
const TURNS_BEFORE_A_RING: usize = 16;

/// Wakes someone outside the engine, which costs a system call and, on a busy core, the engine's turn.
pub(crate) trait Bell: Send + Sync {
    /// Rings it.
    fn ring(&self);
}

static RUNTIME: PerProcess<Runtime> = PerProcess::for_any_clock();

/// The runtime of the virtual clock, while there is one.
static VIRTUAL: PerProcess<Runtime> = PerProcess::new();

static TLS: PerProcess<Tls> = PerProcess::for_any_clock();

/// The engine's thread, and what its clients share.
pub(crate) struct Runtime {
    jobs: UnboundedSender<Vec<Job>>,
    bells: UnboundedSender<Arc<dyn Bell>>,
    /// Only with a virtual clock.
    clock: Option<Clock>,
}

/// A clock that is paused and jumps, see [`Traffic`].
pub(crate) struct Clock {
    pub(crate) runtime: Handle,
    pub(crate) traffic: Arc<Traffic>,
}

impl Runtime {
    /// This process's runtime, started if need be.
    pub(crate) fn get() -> Result<Arc<Self>, Error> {
        match VIRTUAL.get() {
            Some(runtime) => Ok(runtime),
            None => RUNTIME.get_or_make(Self::launch),
        }
    }

    /// The runtime of the virtual clock, if there is one.
    pub(crate) fn with_virtual_clock() -> Option<Arc<Self>> {
        VIRTUAL.get()
    }

    /// Makes everybody use a runtime with a virtual clock from now on. It ends once it is left and nobody holds it any more;
    /// calls that are under way then end with an error.
    pub(crate) fn enter_virtual_clock(seed: u64) -> Result<(Arc<Self>, thread::JoinHandle<()>), Error> {
        let (runtime, thread) = Self::launch_virtual(seed)?;
        process::enter_virtual_clock();
        let mut made = Some(runtime);
        let missing = || Error::internal("the virtual clock was made twice");
        Ok((VIRTUAL.get_or_make(|| made.take().ok_or_else(missing))?, thread))
    }

    /// Back to real time.
    pub(crate) fn leave_virtual_clock() {
        VIRTUAL.clear();
        process::leave_virtual_clock();
    }

    /// `work` with the time of the virtual clock, if there is one. The engine's own thread needs no telling; this is for what
    /// is called from Python's.
    pub(crate) fn on_its_clock<R>(work: impl FnOnce() -> R) -> R {
        let runtime = Self::with_virtual_clock();
        let _context = runtime.as_deref().and_then(Self::clock).map(|clock| clock.runtime.enter());
        work()
    }

    fn launch_virtual(seed: u64) -> Result<(Self, thread::JoinHandle<()>), Error> {
        let failed = |error| Error::internal("the virtual clock's runtime could not be made").with_source(error);
        let (jobs, mut inbox) = unbounded_channel::<Vec<Job>>();
        let runtime = builder().start_paused(true).build().map_err(failed)?;
        let handle = runtime.handle().clone();
        let (bells, due) = unbounded_channel();
        runtime.spawn(ring(due));
        let (started, starting) = sync_channel(1);
        let run = move || {
            // Jitter is drawn from generators that descend from the thread's own.
            fastrand::seed(seed);
            runtime.block_on(async {
                let watch = Traffic::watch_calls();
                let _ = started.send(Arc::clone(watch.traffic()));
                while let Some(jobs) = inbox.recv().await {
                    for job in jobs {
                        let call = watch.traffic().call();
                        tokio::spawn(async move {
                            job.await;
                            drop(call);
                        });
                    }
                }
            });
        };
        let thread = thread::Builder::new().name("millstream-virtual".to_owned()).spawn(run).map_err(failed)?;
        let traffic = starting.recv().map_err(|_| Error::internal("the virtual clock's thread has ended"))?;
        Ok((Self { jobs, bells, clock: Some(Clock { runtime: handle, traffic }) }, thread))
    }

    pub(crate) fn clock(&self) -> Option<&Clock> {
        self.clock.as_ref()
    }

    fn launch() -> Result<Self, Error> {
        let (jobs, mut inbox) = unbounded_channel::<Vec<Job>>();
        let (bells, due) = unbounded_channel::<Arc<dyn Bell>>();
        let runtime = builder()
            .build()
            .map_err(|error| Error::internal("the engine's runtime could not be made").with_source(error))?;
        thread::Builder::new()
            .name("millstream".to_owned())
            .spawn(move || {
                runtime.spawn(ring(due));
                runtime.block_on(async {
                    while let Some(jobs) = inbox.recv().await {
                        for job in jobs {
                            tokio::spawn(job);
                        }
                    }
                });
            })
            .map_err(|error| Error::internal("the engine's thread could not be started").with_source(error))?;
        Ok(Self { jobs, bells, clock: None })
    }

    /// TLS settings, read from the system once.
    pub(crate) fn tls() -> Result<Tls, Error> {
        TLS.get_or_make(Tls::new).map(|tls| (*tls).clone())
    }

    /// Rings the bells that are sent there, each after the tasks that can run now have run, so that one ring tells of what all of
    /// them did.
    pub(crate) fn bells(&self) -> UnboundedSender<Arc<dyn Bell>> {
        self.bells.clone()
    }

    /// Starts `jobs`, waking the engine's thread once for all of them.
    pub(crate) fn start(&self, jobs: Vec<Job>) -> Result<(), Error> {
        self.jobs.send(jobs).map_err(|_| Error::internal("the engine's thread has ended"))
    }
}

async fn ring(due: UnboundedReceiver<Arc<dyn Bell>>) {
    let mut due = Due(due);
    let mut puts = 0;
    while let Some(bell) = due.0.recv().await {
        // Streams that find more to read go on first: their pieces come one to a turn.
        for _ in 0..TURNS_BEFORE_A_RING {
            if mem::replace(&mut puts, puts_here()) == puts_here() {
                break;
            }
            yield_now().await;
        }
        bell.ring();
    }
}

/// Bells that are still to be rung. One that was sent rings, even if the runtime ends before its turn: its port would wait for it
/// for ever.
struct Due(UnboundedReceiver<Arc<dyn Bell>>);

impl Drop for Due {
    fn drop(&mut self) {
        self.0.close();
        while let Ok(bell) = self.0.try_recv() {
            bell.ring();
        }
    }
}

fn builder() -> Builder {
    let mut builder = Builder::new_current_thread();
    builder.enable_io().enable_time().max_blocking_threads(RESOLVER_THREADS).thread_name("millstream-dns");
    builder
}

/// `work` until it ends or is aborted; `done` gets its outcome on the engine's thread, unless it was aborted.
pub(crate) fn job<T: 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
    registration: AbortRegistration,
    done: impl FnOnce(Result<T, Error>) + Send + 'static,
) -> Job {
    let guarded = AssertUnwindSafe(work).catch_unwind();
    let job = async move {
        let outcome = guarded.await;
        done(outcome.unwrap_or_else(|_| Err(panicked())));
    };
    Box::pin(Abortable::new(job, registration).map(|_| ()))
}

/// `work` in a thread of Python's, a panic of which becomes an `InternalError`: pyo3's own `PanicException` is no `Exception`, so it
/// would go past every handler and end the program.
pub(crate) fn guarded<R>(py: Python<'_>, work: impl FnOnce() -> PyResult<R>) -> PyResult<R> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(errors::raise(py, &panicked())))
}

fn panicked() -> Error {
    Error::internal("the engine panicked; please report it, with what it wrote to stderr")
}

/// Waits for `work` with the GIL released, waking now and then for signals. A signal handler's exception aborts the work.
pub(crate) fn block_on<T: Send + 'static>(
    py: Python<'_>,
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> PyResult<T> {
    log::refresh(py)?;
    let (abort, registration) = AbortHandle::new_pair();
    let (sender, mut inbox) = sync_channel(1);
    let job = job(work, registration, move |outcome| {
        let _ = sender.send(outcome);
    });
    let submitted = Runtime::get().and_then(|runtime| runtime.start(vec![job]));
    submitted.map_err(|error| errors::raise(py, &error))?;
    loop {
        // A receiver cannot be shared with the detached closure, so it moves in and out.
        let outcome;
        (outcome, inbox) = py.detach(move || (inbox.recv_timeout(SIGNAL_INTERVAL), inbox));
        match outcome {
            Ok(outcome) => {
                log::flush(py)?;
                return outcome.map_err(|error| errors::raise(py, &error));
            }
            Err(RecvTimeoutError::Timeout) => {
                py.check_signals().and_then(|()| log::flush(py)).inspect_err(|_| abort.abort())?;
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(errors::raise(py, &Error::internal("the engine dropped a call")));
            }
        }
    }
}
