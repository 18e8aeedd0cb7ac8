"""What a student's process may do: limits of the system, and a filter of its calls.

    limit(...)     time, memory and size of files: any Unix
    seal()         no new process, no network, no file written, renamed or removed, no signal to
                   others: Linux on x86-64. All other calls of the list below go through.

The filter is a program for seccomp (man 2 seccomp): for each system call it gives the number and
the arguments, and gets back whether the call runs or fails with "permission denied".
"""
import ctypes
import os
import platform
import struct

try:
    import resource
except ImportError:  # Windows
    resource = None

MEGABYTE = 2**20
# What Python and PyTorch need on one thread or several: read, map memory, wait, look at the time.
CALLS = {
    "read": 0, "write": 1, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7, "lseek": 8,
    "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14,
    "rt_sigreturn": 15, "pread64": 17, "readv": 19, "writev": 20, "access": 21, "select": 23,
    "sched_yield": 24, "mremap": 25, "madvise": 28, "dup": 32, "nanosleep": 35, "getpid": 39,
    "exit": 60, "uname": 63, "getcwd": 79, "readlink": 89, "gettimeofday": 96, "getrusage": 98,
    "sysinfo": 99, "times": 100, "getuid": 102, "getgid": 104, "geteuid": 107, "getegid": 108,
    "getppid": 110, "sigaltstack": 131, "statfs": 137, "fstatfs": 138, "gettid": 186, "time": 201,
    "futex": 202, "sched_setaffinity": 203, "sched_getaffinity": 204, "getdents64": 217,
    "set_tid_address": 218, "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230,
    "exit_group": 231, "get_mempolicy": 239, "newfstatat": 262, "readlinkat": 267, "faccessat": 269,
    "pselect6": 270, "ppoll": 271, "set_robust_list": 273, "getcpu": 309, "getrandom": 318,
    "membarrier": 324, "statx": 332, "rseq": 334, "faccessat2": 439}
FCNTL, OPEN, OPENAT, CLONE, CLONE3, PRLIMIT = 72, 2, 257, 56, 435, 302
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CLONE_THREAD, F_SETFL_MOST = 0x10000, 4
ALLOW, DENY, UNKNOWN = 0x7FFF0000, 0x50000 | 13, 0x50000 | 38  # run; EACCES; ENOSYS
X86_64 = 0xC000003E


def limit(seconds, megabytes, largest_file=MEGABYTE):
    """CPU seconds, memory beyond what the process has, and the size of any file it writes.
    Returns the names of the limits that this system has."""
    if resource is None:
        return []
    named = {"time": (resource.RLIMIT_CPU, seconds),
             "output": (resource.RLIMIT_FSIZE, largest_file),
             "files": (resource.RLIMIT_NOFILE, 64), "core": (resource.RLIMIT_CORE, 0)}
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[0])
        named["memory"] = (resource.RLIMIT_AS, pages * os.sysconf("SC_PAGE_SIZE")
                           + megabytes * MEGABYTE)
    for kind, value in named.values():
        resource.setrlimit(kind, (value, value))
    return sorted(named.keys() - {"core"})


def program():
    """The filter: 8 bytes an instruction, (code, jump if true, jump if false, constant)."""
    load = lambda at: (0x20, 0, 0, at)          # a word of (number, architecture, ip, arguments)
    argument = lambda n: load(16 + 8 * n)       # its lower half
    equal = lambda value, yes, no: (0x15, yes, no, value)
    some_bit = lambda bits, yes, no: (0x45, yes, no, bits)
    end = lambda what: (0x06, 0, 0, what)
    out = [load(4), equal(X86_64, 1, 0), end(DENY), load(0)]
    for number in CALLS.values():
        out += [equal(number, 0, 1), end(ALLOW)]
    for number, at, bits in ((OPEN, 1, WRITING), (OPENAT, 2, WRITING), (PRLIMIT, 2, 0xFFFFFFFF)):
        out += [equal(number, 0, 4), argument(at), some_bit(bits, 0, 1), end(DENY), end(ALLOW)]
    out += [equal(CLONE, 0, 4), argument(0), some_bit(CLONE_THREAD, 0, 1), end(ALLOW), end(DENY)]
    out += [equal(FCNTL, 0, 4), argument(1), (0x25, 0, 1, F_SETFL_MOST), end(DENY), end(ALLOW)]
    out += [equal(CLONE3, 0, 1), end(UNKNOWN)]  # then glibc takes clone
    return b"".join(struct.pack("HBBI", *line) for line in out + [end(DENY)])


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]


def seal():
    """Let this process, and all its threads to come, make only the calls above. Returns whether
    the system can do that; there is no way back."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    code = program()
    held = ctypes.create_string_buffer(code, len(code))
    filter_ = _Program(len(code) // 8, ctypes.addressof(held))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_rights = libc.prctl(38, 1, 0, 0, 0) == 0
    return no_new_rights and libc.prctl(22, 2, ctypes.byref(filter_), 0, 0) == 0
