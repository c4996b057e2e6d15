/* Loaded with LD_PRELOAD: a fault just before the n-th call that changes files under one folder.

   Counted are open (that creates or truncates), write, ftruncate, fsync, rename, link, unlink, mkdir and rmdir, of
   every library in the process: also SQLite's. Each is written to a log, if one is set. From the n-th on:

       mode 1  the process is gone (SIGKILL)
       mode 2  as 1, but half of a write has happened
       mode 3  calls that need room fail with ENOSPC
       mode 4  all calls fail with EROFS

   faults_clock moves the wall clock of the process. Nothing happens before faults_arm or faults_clock is called. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static char root[PATH_MAX];
static long moment, count;
static int mode, logged = -1;
static double shift;

void faults_arm(const char *folder, int how, long when, int log) {
    snprintf(root, sizeof root, "%s", folder);
    mode = how; moment = when; logged = log;
    __atomic_store_n(&count, 0, __ATOMIC_SEQ_CST);
}

void faults_clock(double seconds) { shift = seconds; }

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* Path of an open file, or of `name` as seen from `folder`; "" where it is none. */
static void path_of(int folder, const char *name, char *path) {
    char link[64];
    path[0] = 0;
    if (name != NULL && (name[0] == '/' || folder == AT_FDCWD)) {
        if (name[0] != '/' && getcwd(path, PATH_MAX / 2) != NULL) strcat(path, "/");
        strncat(path, name, PATH_MAX / 2 - 2);
        return;
    }
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t length = readlink(link, path, PATH_MAX / 2);
    path[length < 0 ? 0 : length] = 0;
    if (name != NULL && path[0]) { strcat(path, "/"); strncat(path, name, PATH_MAX / 2 - 2); }
}

/* The fault, where it is time: 0 go on, 1 half a write and then the end, else an errno. */
static int fault(const char *what, int folder, const char *name, int needs_room) {
    if (!root[0]) return 0;
    int before = errno;
    char path[PATH_MAX + 8];
    path_of(folder, name, path);
    size_t length = strlen(root);
    if (strncmp(path, root, length) || (path[length] != '/' && path[length])) { errno = before; return 0; }
    long number = __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
    if (logged >= 0) dprintf(logged, "%s %s\n", what, path[length] ? path + length + 1 : ".");
    errno = before;
    if (!moment || number < moment) return 0;
    if (mode == 1 || (mode == 2 && strcmp(what, "write"))) kill(getpid(), SIGKILL);
    if (mode == 2) return 1;
    if (mode == 3) return needs_room ? ENOSPC : 0;
    return mode == 4 ? EROFS : 0;
}

#define REFUSE(error) do { errno = (error); return -1; } while (0)
#define CHECK(...) do { int error = fault(__VA_ARGS__); if (error) REFUSE(error); } while (0)

#define TEAR(half) do { (void)!(half); kill(getpid(), SIGKILL); } while (0)

ssize_t write(int fd, const void *data, size_t size) {
    int error = fault("write", fd, NULL, 1);
    if (error == 1) TEAR(REAL(write)(fd, data, size / 2));
    if (error) REFUSE(error);
    return REAL(write)(fd, data, size);
}
ssize_t writev(int fd, const struct iovec *parts, int num) {
    int error = fault("write", fd, NULL, 1);
    if (error == 1) TEAR(REAL(writev)(fd, parts, num / 2));
    if (error) REFUSE(error);
    return REAL(writev)(fd, parts, num);
}
#define PWRITE(name, offset_type) \
    ssize_t name(int fd, const void *data, size_t size, offset_type at) { \
        int error = fault("write", fd, NULL, 1); \
        if (error == 1) TEAR(REAL(name)(fd, data, size / 2, at)); \
        if (error) REFUSE(error); \
        return REAL(name)(fd, data, size, at); \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)
int ftruncate(int fd, off_t size) { CHECK("truncate", fd, NULL, 0); return REAL(ftruncate)(fd, size); }
int ftruncate64(int fd, off64_t size) { CHECK("truncate", fd, NULL, 0); return REAL(ftruncate64)(fd, size); }
int fsync(int fd) { CHECK("sync", fd, NULL, 0); return REAL(fsync)(fd); }
int fdatasync(int fd) { CHECK("sync", fd, NULL, 0); return REAL(fdatasync)(fd); }

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list rest; va_start(rest, flags); mode_t bits = va_arg(rest, mode_t); va_end(rest); \
        if (flags & (O_CREAT | O_TRUNC)) CHECK("open", AT_FDCWD, path, 1); \
        return REAL(name)(path, flags, bits); \
    }
OPEN(open)
OPEN(open64)
#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        va_list rest; va_start(rest, flags); mode_t bits = va_arg(rest, mode_t); va_end(rest); \
        if (flags & (O_CREAT | O_TRUNC)) CHECK("open", folder, path, 1); \
        return REAL(name)(folder, path, flags, bits); \
    }
OPENAT(openat)
OPENAT(openat64)

int rename(const char *from, const char *to) { CHECK("rename", AT_FDCWD, to, 1); return REAL(rename)(from, to); }
int renameat(int a, const char *from, int b, const char *to) {
    CHECK("rename", b, to, 1);
    return REAL(renameat)(a, from, b, to);
}
int link(const char *from, const char *to) { CHECK("link", AT_FDCWD, to, 1); return REAL(link)(from, to); }
int unlink(const char *path) { CHECK("unlink", AT_FDCWD, path, 0); return REAL(unlink)(path); }
int unlinkat(int folder, const char *path, int flags) {
    CHECK("unlink", folder, path, 0);
    return REAL(unlinkat)(folder, path, flags);
}
int mkdir(const char *path, mode_t bits) { CHECK("mkdir", AT_FDCWD, path, 1); return REAL(mkdir)(path, bits); }
int mkdirat(int folder, const char *path, mode_t bits) {
    CHECK("mkdir", folder, path, 1);
    return REAL(mkdirat)(folder, path, bits);
}
int rmdir(const char *path) { CHECK("rmdir", AT_FDCWD, path, 0); return REAL(rmdir)(path); }

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = REAL(clock_gettime)(clock, now);
    if (clock == CLOCK_REALTIME && shift != 0) now->tv_sec += (time_t)shift;
    return result;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int result = REAL(gettimeofday)(now, zone);
    if (shift != 0) now->tv_sec += (time_t)shift;
    return result;
}
time_t time(time_t *result) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (result != NULL) *result = now.tv_sec;
    return now.tv_sec;
}
