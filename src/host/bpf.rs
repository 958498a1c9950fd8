//! A BPF program that chooses the listener of TCP connections (`sk_lookup`, Linux 5.9), and the map it
//! takes the listener from.
//!
//! Program, map and link live as long as their descriptors: the kernel removes them with the process.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::libc;

use crate::host::sys::check;

// Commands and kinds of bpf(2) (include/uapi/linux/bpf.h).
const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_MAP_TYPE_SOCKMAP: u32 = 15;
const BPF_PROG_TYPE_SK_LOOKUP: u32 = 30;
const BPF_SK_LOOKUP: u32 = 36;

// Instruction codes (include/uapi/linux/bpf_common.h), helper functions and their constants (bpf.h).
const MOVE: u8 = 0xbf;
const MOVE_NUMBER: u8 = 0xb7;
const ADD_NUMBER: u8 = 0x07;
const LOAD_WORD: u8 = 0x61;
const LOAD_BYTE: u8 = 0x71;
const STORE_WORD: u8 = 0x62;
const LOAD_MAP: u8 = 0x18;
const UNLESS_EQUAL: u8 = 0x55;
const IF_EQUAL: u8 = 0x15;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const MAP_LOOKUP_ELEM: i32 = 1;
const SK_RELEASE: i32 = 86;
const SK_ASSIGN: i32 = 124;
const SK_PASS: i32 = 1;

// Offsets in `struct bpf_sk_lookup`.
const PROTOCOL: i16 = 12;
const LOCAL_IP4: i16 = 40;

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u8,
    /// Destination and source, half a byte each, in the order of the machine's bit fields.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn op(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    let registers = if cfg!(target_endian = "big") { to << 4 | from } else { from << 4 | to };
    Instruction { code, registers, offset, immediate }
}

/// TCP to 127.0.0.0/8 goes to the socket in the map, everything else where it would have gone.
fn program(map: &OwnedFd) -> [Instruction; 21] {
    [
        // int choose(struct bpf_sk_lookup *r6) {
        op(MOVE, 6, 1, 0, 0),
        //     if (r6->protocol != IPPROTO_TCP) goto pass;
        op(LOAD_WORD, 2, 6, PROTOCOL, 0),
        op(UNLESS_EQUAL, 2, 0, 16, 6),
        //     if (*(u8 *)&r6->local_ip4 != 127) goto pass;    // in the network's order: the first of the four
        op(LOAD_BYTE, 2, 6, LOCAL_IP4, 0),
        op(UNLESS_EQUAL, 2, 0, 14, 127),
        //     u32 index = 0;    // on the stack, at r10 - 4
        op(STORE_WORD, 10, 0, -4, 0),
        //     struct bpf_sock *r0 = bpf_map_lookup_elem(map, &index);    // the map takes two instructions
        op(MOVE, 2, 10, 0, 0),
        op(ADD_NUMBER, 2, 0, 0, -4),
        op(LOAD_MAP, 1, 1, 0, map.as_raw_fd()),
        op(0, 0, 0, 0, 0),
        op(CALL, 0, 0, 0, MAP_LOOKUP_ELEM),
        //     if (r0 == NULL) goto pass;
        op(IF_EQUAL, 0, 0, 7, 0),
        //     struct bpf_sock *r7 = r0;
        op(MOVE, 7, 0, 0, 0),
        //     bpf_sk_assign(r6, r7, 0);
        op(MOVE, 1, 6, 0, 0),
        op(MOVE, 2, 7, 0, 0),
        op(MOVE_NUMBER, 3, 0, 0, 0),
        op(CALL, 0, 0, 0, SK_ASSIGN),
        //     bpf_sk_release(r7);
        op(MOVE, 1, 7, 0, 0),
        op(CALL, 0, 0, 0, SK_RELEASE),
        // pass:
        //     return SK_PASS;
        op(MOVE_NUMBER, 0, 0, 0, SK_PASS),
        op(EXIT, 0, 0, 0, 0),
        // }
    ]
}

/// bpf(2). `attributes` begin as the command's part of `union bpf_attr` does.
///
/// # Safety
///
/// Addresses among the attributes are of memory that lives and is as large as the command expects.
unsafe fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads the attributes' own size; for what they point to the caller answers.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    check(result).map(|()| result)
}

/// The new descriptor that a command of bpf(2) returned; it closes itself at exec.
fn new_fd(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made it for this call, so it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A map (`BPF_MAP_TYPE_SOCKMAP`) that holds one listening socket at index 0, as long as that is open.
pub(crate) fn socket_map(socket: &impl AsRawFd) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Create([u32; 5]);
    #[repr(C)]
    struct Update {
        map: RawFd,
        padding: u32,
        key: *const u32,
        value: *const RawFd,
        flags: u64,
    }
    // SAFETY: integers only: type, sizes of key and value, entries, flags.
    let map = new_fd(unsafe { bpf(BPF_MAP_CREATE, &Create([BPF_MAP_TYPE_SOCKMAP, 4, 4, 1, 0])) }?)?;
    let (key, value) = (0, socket.as_raw_fd());
    let update =
        Update { map: map.as_raw_fd(), padding: 0, key: &raw const key, value: &raw const value, flags: 0 };
    // SAFETY: key and value are live and have the sizes that the map was made with.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &update) }?;
    Ok(map)
}

/// Loads the program for the socket in `map`.
pub(crate) fn load(map: &OwnedFd) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: *const Instruction,
        license: *const libc::c_char,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel: u32,
        flags: u32,
        name: [u8; 16],
        interface: u32,
        attach: u32,
    }
    let instructions = program(map);
    let load = Load {
        kind: BPF_PROG_TYPE_SK_LOOKUP,
        count: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        instructions: instructions.as_ptr(),
        license: c"Apache-2.0".as_ptr(),
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel: 0,
        flags: 0,
        name: *b"kata_se_forward\0",
        interface: 0,
        attach: BPF_SK_LOOKUP,
    };
    // SAFETY: instructions and licence live; the kernel reads as many as were counted, and to the NUL.
    new_fd(unsafe { bpf(BPF_PROG_LOAD, &load) }?)
}

/// Attaches the program to a network namespace until the result is closed.
pub(crate) fn attach(program: &OwnedFd, netns: &File) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Link {
        program: RawFd,
        target: RawFd,
        attach: u32,
        flags: u32,
    }
    let link =
        Link { program: program.as_raw_fd(), target: netns.as_raw_fd(), attach: BPF_SK_LOOKUP, flags: 0 };
    // SAFETY: integers only.
    new_fd(unsafe { bpf(BPF_LINK_CREATE, &link) }?)
}
