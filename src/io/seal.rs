//! What a kernel that does not take part any more does to a shard: from some moment on, each wait of its event loop fails. For tests of
//! what becomes of the gateway then; only where the debug hooks are on.

use std::io;

/// The words of a seccomp filter: which system call it is lies at the beginning of what it is shown.
const CALL_OFFSET: u32 = 0;

/// Has the kernel refuse `io_uring_enter` and the waiting of epoll to this thread, for good.
pub fn seal(shard: usize) {
    match refuse(&[libc::SYS_io_uring_enter, libc::SYS_epoll_pwait, EPOLL_WAIT]) {
        Ok(()) => tracing::warn!(shard, "sealed, as a test has asked for"),
        Err(error) => tracing::error!(shard, %error, "cannot be sealed"),
    }
}

#[cfg(target_arch = "x86_64")]
const EPOLL_WAIT: libc::c_long = libc::SYS_epoll_wait;
#[cfg(not(target_arch = "x86_64"))]
const EPOLL_WAIT: libc::c_long = libc::SYS_epoll_pwait;

fn refuse(calls: &[libc::c_long; 3]) -> io::Result<()> {
    let word = |code: u32, value: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k: value };
    let refusal = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    // Each comparison jumps over what is left of them, and over the permission behind.
    let equal = |at: usize, call: libc::c_long| libc::sock_filter {
        jt: (calls.len() - at) as u8,
        ..word(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, call as u32)
    };
    let mut filter = [
        word(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, CALL_OFFSET),
        equal(0, calls[0]),
        equal(1, calls[1]),
        equal(2, calls[2]),
        word(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
        word(libc::BPF_RET | libc::BPF_K, refusal),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the first call takes numbers alone; the second reads the program and its words, which live until it returns, and
    // changes this thread's system calls and nothing in memory.
    let failed = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) != 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_calls_are_refused_to_this_thread_alone() {
        // SAFETY: a descriptor that is not open: the call does nothing in either case.
        let wait = || unsafe {
            libc::syscall(libc::SYS_io_uring_enter, -1, 0, 0, 0, 0, 0);
            io::Error::last_os_error().raw_os_error()
        };
        let sealed = std::thread::spawn(move || refuse(&[libc::SYS_io_uring_enter; 3]).map(|()| wait())).join();
        assert_eq!(sealed.unwrap().unwrap(), Some(libc::EPERM));
        assert_ne!(wait(), Some(libc::EPERM));
    }
}
