/* Ends or fails a process in the middle of a system call; test_environment.py builds and preloads it.

   FI_PATH    part of the path of the file that is meant
   FI_OP      write, fsync or rename
   FI_AT      which of these calls (1, 2, ...) it concerns
   FI_SHORT   how many bytes that write writes before it ends (-1: all)
   FI_ERROR   the errno of the calls after that write, or of the fsync, or 0
   FI_KILL    1: then SIGKILL */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int seen;

static long number(const char *name) {
    const char *value = getenv(name);
    return value ? atol(value) : 0;
}

static int meant(const char *path, const char *operation) {
    const char *part = getenv("FI_PATH"), *wanted = getenv("FI_OP");
    return part && wanted && !strcmp(wanted, operation) && strstr(path, part);
}

static int meant_descriptor(int descriptor, const char *operation) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return meant(path, operation);
}

static void die(void) {
    if (number("FI_KILL"))
        kill(getpid(), SIGKILL);
}

ssize_t write(int descriptor, const void *data, size_t size) {
    ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    if (!meant_descriptor(descriptor, "write"))
        return real(descriptor, data, size);
    seen++;
    if (seen > number("FI_AT") && number("FI_ERROR")) {
        errno = number("FI_ERROR");
        return -1;
    }
    if (seen != number("FI_AT"))
        return real(descriptor, data, size);
    long part = number("FI_SHORT");
    ssize_t written = real(descriptor, data, part < 0 || (size_t)part > size ? size : (size_t)part);
    die();
    return written;
}

int fsync(int descriptor) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fsync");
    if (!meant_descriptor(descriptor, "fsync") || ++seen != number("FI_AT"))
        return real(descriptor);
    die();
    errno = number("FI_ERROR");
    return -1;
}

int rename(const char *from, const char *to) {
    int (*real)(const char *, const char *) = dlsym(RTLD_NEXT, "rename");
    if (!meant(from, "rename") || ++seen != number("FI_AT"))
        return real(from, to);
    if (number("FI_SHORT"))
        die();
    int result = real(from, to);
    die();
    return result;
}
