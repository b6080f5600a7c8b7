//! The signals that the program obeys: bytes through sockets, so that the handlers do nothing else and none is lost between two looks.

use std::io;
use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR2};
use tokio::io::AsyncReadExt as _;

/// All of them, taken from [`Signals::take`] on and obeyed once the control thread runs.
pub struct Signals {
    /// SIGTERM and SIGINT.
    end: UnixStream,
    /// SIGHUP.
    reload: UnixStream,
    /// SIGUSR2.
    upgrade: UnixStream,
}

impl Signals {
    /// To be called before anything is served: until then a signal ends the program at once.
    ///
    /// # Errors
    /// What the system refused.
    pub fn take() -> io::Result<Self> {
        Ok(Self { end: register(&[SIGTERM, SIGINT])?, reload: register(&[SIGHUP])?, upgrade: register(&[SIGUSR2])? })
    }

    /// That asks for the end, for a reload and for an upgrade. Of none, nothing ever comes.
    pub(super) fn apart(all: Option<Self>) -> io::Result<[Signal; 3]> {
        let Some(Self { end, reload, upgrade }) = all else { return Ok([Signal(None), Signal(None), Signal(None)]) };
        Ok([Signal::of(end)?, Signal::of(reload)?, Signal::of(upgrade)?])
    }
}

fn register(numbers: &[i32]) -> io::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    read.set_nonblocking(true)?;
    for number in numbers {
        signal_hook::low_level::pipe::register(*number, write.try_clone()?)?;
    }
    Ok(read)
}

pub(super) struct Signal(Option<tokio::net::UnixStream>);

impl Signal {
    fn of(read: UnixStream) -> io::Result<Self> {
        Ok(Self(Some(tokio::net::UnixStream::from_std(read)?)))
    }

    pub(super) async fn next(&mut self) {
        let mut byte = [0];
        // The handlers hold the other end for the life of the process, so reading neither ends nor fails.
        let signalled = match &mut self.0 {
            Some(pipe) => pipe.read_exact(&mut byte).await.is_ok(),
            None => false,
        };
        if !signalled {
            std::future::pending().await
        }
    }
}
