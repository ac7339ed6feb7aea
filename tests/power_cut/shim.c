/* Writes down what a process does to the files below one directory, in order and with the data, so that a test can
 * work out what a power cut might have left. Loaded into the process with LD_PRELOAD.
 *
 * Order. A change is written down when its system call has returned, a sync twice: before the call and after it. So
 * what stands before the first of the two is covered by the sync, and what the sync covers may be relied on from the
 * second on. A line of the process's own log, LASTMILE_POWER_TOLD, is one more change among the others.
 *
 * An end. `abort` waits, for a moment, until somebody is about to sync a journal segment, and does not let them: what
 * was written there is then in memory only, for the next process to find. It lets all other calls that are under way
 * return, writes them down, and lets none begin: what the dead process did and what was written down are the same.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

struct head {
    uint32_t kind, thread;
    uint64_t at;
    uint32_t path_len, other_len, data_len, zero;
};

static pthread_rwlock_t alive = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;
static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;
static char root[4096], told[4096];
static int trace = -1;
/* Whether the process is about to end, and whether somebody was kept from a sync. */
static int ending, kept;

__attribute__((constructor)) static void begin(void) {
    const char *file = getenv("LASTMILE_POWER_TRACE");
    const char *below = getenv("LASTMILE_POWER_ROOT");
    const char *log = getenv("LASTMILE_POWER_TOLD");
    if (!file || !below || !log) return;
    snprintf(root, sizeof root, "%s", below);
    snprintf(told, sizeof told, "%s", log);
    trace = syscall(SYS_openat, AT_FDCWD, file, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
    if (trace < 0) _exit(120);
}

/* The path below the root, or NULL when it is none of our business. */
static const char *below(const char *path) {
    size_t len = strlen(root);
    if (trace < 0 || !path || strncmp(path, root, len)) return NULL;
    if (path[len] == 0) return path + len;
    return path[len] == '/' ? path + len + 1 : NULL;
}

static void put(uint32_t kind, const char *path, const char *other, uint64_t at, const void *data, size_t len) {
    struct head head = {kind, (uint32_t)syscall(SYS_gettid), at, strlen(path), other ? strlen(other) : 0, len, 0};
    struct iovec parts[4] = {
        {&head, sizeof head}, {(void *)path, head.path_len}, {(void *)other, head.other_len}, {(void *)data, len}};
    ssize_t all = sizeof head + head.path_len + head.other_len + len;
    int before = errno;
    pthread_mutex_lock(&order);
    if (syscall(SYS_writev, trace, parts, 4) != all) _exit(121);
    pthread_mutex_unlock(&order);
    errno = before;
}

/* What an open file is called now. */
static const char *name_of(int fd, char *buffer) {
    char link[64];
    int before = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = trace < 0 ? -1 : syscall(SYS_readlinkat, AT_FDCWD, link, buffer, 4095);
    errno = before;
    if (len < 0) return NULL;
    buffer[len] = 0;
    return buffer;
}

/* Makes the call, and notes it when it succeeded. */
#define CALL(value, made, ...)            \
    do {                                  \
        pthread_rwlock_rdlock(&alive);    \
        value = (made);                   \
        if (value >= 0) { __VA_ARGS__; }  \
        pthread_rwlock_unlock(&alive);    \
        return value;                     \
    } while (0)

void abort(void) {
    __atomic_store_n(&ending, 1, __ATOMIC_SEQ_CST);
    for (int i = 0; i < 200 && !__atomic_load_n(&kept, __ATOMIC_SEQ_CST); i++) usleep(1000);
    pthread_rwlock_wrlock(&alive);
    _exit(134);
}

static int do_open(int dir, const char *path, int flags, mode_t mode) {
    int fd;
    const char *name = path && path[0] == '/' ? below(path) : NULL;
    CALL(fd, syscall(SYS_openat, dir, path, flags, mode), {
        if (name && flags & (O_CREAT | O_TRUNC)) put('O', name, NULL, flags & O_TRUNC ? 1 : 0, NULL, 0);
    });
}

#define OPEN_ARGUMENTS(flags)                        \
    mode_t mode = 0;                                 \
    if (flags & (O_CREAT | O_TMPFILE)) {             \
        va_list rest;                                \
        va_start(rest, flags);                       \
        mode = va_arg(rest, mode_t);                 \
        va_end(rest);                                \
    }

int open(const char *path, int flags, ...) { OPEN_ARGUMENTS(flags) return do_open(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { OPEN_ARGUMENTS(flags) return do_open(AT_FDCWD, path, flags, mode); }
int openat(int dir, const char *path, int flags, ...) { OPEN_ARGUMENTS(flags) return do_open(dir, path, flags, mode); }
int openat64(int dir, const char *path, int flags, ...) { OPEN_ARGUMENTS(flags) return do_open(dir, path, flags, mode); }
int creat(const char *path, mode_t mode) { return do_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return creat(path, mode); }

static void note_write(int fd, uint64_t at, const void *data, size_t len) {
    char buffer[4096];
    const char *path = name_of(fd, buffer);
    if (path && !strcmp(path, told)) put('L', "", NULL, 0, data, len);
    else if ((path = below(path))) put('W', path, NULL, at, data, len);
}

ssize_t write(int fd, const void *data, size_t len) {
    ssize_t done;
    int before = errno;
    off_t at = trace < 0 ? 0 : syscall(SYS_lseek, fd, 0, SEEK_CUR);
    errno = before;
    CALL(done, syscall(SYS_write, fd, data, len), note_write(fd, at, data, done));
}

ssize_t pwrite(int fd, const void *data, size_t len, off_t at) {
    ssize_t done;
    CALL(done, syscall(SYS_pwrite64, fd, data, len, at), note_write(fd, at, data, done));
}
ssize_t pwrite64(int fd, const void *data, size_t len, off64_t at) { return pwrite(fd, data, len, at); }

/* Only the first part: whoever writes so must go on with the rest, as after any short write. */
ssize_t writev(int fd, const struct iovec *parts, int count) {
    while (count > 1 && parts->iov_len == 0) parts++, count--;
    return count ? write(fd, parts->iov_base, parts->iov_len) : 0;
}
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) {
    while (count > 1 && parts->iov_len == 0) parts++, count--;
    return count ? pwrite(fd, parts->iov_base, parts->iov_len, at) : 0;
}
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at) { return pwritev(fd, parts, count, at); }

static void note_fd(uint32_t kind, int fd, uint64_t at) {
    char buffer[4096];
    const char *path = below(name_of(fd, buffer));
    if (path) put(kind, path, NULL, at, NULL, 0);
}

int ftruncate(int fd, off_t len) {
    int done;
    CALL(done, syscall(SYS_ftruncate, fd, len), note_fd('T', fd, len));
}
int ftruncate64(int fd, off64_t len) { return ftruncate(fd, len); }

int fallocate(int fd, int mode, off_t at, off_t len) {
    int done;
    CALL(done, syscall(SYS_fallocate, fd, mode, at, len), note_fd(mode ? 'X' : 'A', fd, at + len));
}
int fallocate64(int fd, int mode, off64_t at, off64_t len) { return fallocate(fd, mode, at, len); }
int posix_fallocate(int fd, off_t at, off_t len) { return fallocate(fd, 0, at, len) ? errno : 0; }
int posix_fallocate64(int fd, off64_t at, off64_t len) { return posix_fallocate(fd, at, len); }

/* Keeps whoever is about to sync a journal segment of a process that is about to end. */
static void keep_from_syncing(int fd) {
    char buffer[4096];
    if (!__atomic_load_n(&ending, __ATOMIC_SEQ_CST)) return;
    const char *path = below(name_of(fd, buffer));
    if (!path || !strstr(path, ".journal")) return;
    __atomic_store_n(&kept, 1, __ATOMIC_SEQ_CST);
    for (;;) pause();
}

static int sync_with(long call, int fd) {
    int done;
    keep_from_syncing(fd);
    CALL(done, (note_fd('B', fd, 0), syscall(call, fd)), note_fd('E', fd, 0));
}
int fsync(int fd) { return sync_with(SYS_fsync, fd); }
int fdatasync(int fd) { return sync_with(SYS_fdatasync, fd); }

/* Guarantees nothing, and is counted to show that it was asked for. */
int sync_file_range(int fd, off64_t at, off64_t len, unsigned flags) {
    int done;
    CALL(done, syscall(SYS_sync_file_range, fd, at, len, flags), note_fd('S', fd, at));
}

static int do_rename(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
    int done;
    CALL(done, syscall(SYS_renameat2, from_dir, from, to_dir, to, flags), {
        const char *a = below(from), *b = below(to);
        if (a && b) put(flags ? 'X' : 'R', a, b, 0, NULL, 0);
        else if (a || b) put('X', a ? a : b, NULL, 0, NULL, 0);
    });
}
int rename(const char *from, const char *to) { return do_rename(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int a, const char *from, int b, const char *to) { return do_rename(a, from, b, to, 0); }
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) { return do_rename(a, from, b, to, flags); }

static int do_unlink(int dir, const char *path, int flags) {
    int done;
    CALL(done, syscall(SYS_unlinkat, dir, path, flags), if (below(path)) put('U', below(path), NULL, 0, NULL, 0));
}
int unlink(const char *path) { return do_unlink(AT_FDCWD, path, 0); }
int unlinkat(int dir, const char *path, int flags) { return do_unlink(dir, path, flags); }
int rmdir(const char *path) { return do_unlink(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdirat(int dir, const char *path, mode_t mode) {
    int done;
    CALL(done, syscall(SYS_mkdirat, dir, path, mode), if (below(path)) put('M', below(path), NULL, 0, NULL, 0));
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

/* Nobody does these today, and the model knows nothing of them: it refuses a trace that holds one. */
int link(const char *from, const char *to) {
    int done;
    CALL(done, syscall(SYS_linkat, AT_FDCWD, from, AT_FDCWD, to, 0), if (below(to)) put('X', below(to), NULL, 0, NULL, 0));
}
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t len, unsigned flags) {
    ssize_t done;
    CALL(done, syscall(SYS_copy_file_range, in, from, out, to, len, flags), note_fd('X', out, 0));
}
