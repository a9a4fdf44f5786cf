/* What a hostile container runs: a tracer of all that it sees, and a reader of keys.
 * Static, so that any image can hold it. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MOST 4096

static char *told[MOST];
static int tellings;

/* Says a finding once. */
static void find(const char *kind, const char *what) {
    char line[1024];
    snprintf(line, sizeof line, "FOUND %s %s", kind, what);
    for (int i = 0; i < tellings; i++)
        if (!strcmp(told[i], line)) return;
    if (tellings < MOST) told[tellings++] = strdup(line);
    puts(line);
    fflush(stdout);
}

static int link_of(const char *path, char *to, size_t size) {
    ssize_t length = readlink(path, to, size - 1);
    if (length < 0) return -1;
    to[length] = 0;
    return 0;
}

static const char *NAMESPACES[] = {"mnt", "pid", "net", "ipc", "uts", "cgroup"};

static void namespaces(const char *pid, char **host, int hosts) {
    for (unsigned n = 0; n < sizeof NAMESPACES / sizeof *NAMESPACES; n++) {
        char path[512], is[128];
        snprintf(path, sizeof path, "/proc/%s/ns/%s", pid, NAMESPACES[n]);
        if (link_of(path, is, sizeof is)) continue;
        for (int h = 0; h < hosts; h++)
            if (!strcmp(is, host[h])) find("namespace", is);
    }
}

static void descriptors(const char *pid) {
    char dir[512];
    snprintf(dir, sizeof dir, "/proc/%s/fd", pid);
    DIR *all = opendir(dir);
    if (!all) return;
    struct dirent *one;
    while ((one = readdir(all))) {
        char path[1024], is[512];
        if (one->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "%s/%s", dir, one->d_name);
        if (link_of(path, is, sizeof is)) continue;
        /* A socket leads on to whoever has its other end. */
        int fine = !strncmp(is, "pipe:", 5) || !strcmp(is, "/dev/null") || !strcmp(is, "/null");
        if (!fine) find("descriptor", is);
    }
    closedir(all);
}

static unsigned long long set_of(const char *status, const char *name) {
    const char *at = strstr(status, name);
    return at ? strtoull(at + strlen(name), NULL, 16) : 0;
}

static void capabilities(const char *pid, unsigned long long most) {
    char path[512], status[4096];
    snprintf(path, sizeof path, "/proc/%s/status", pid);
    int file = open(path, O_RDONLY);
    if (file < 0) return;
    ssize_t length = read(file, status, sizeof status - 1);
    close(file);
    if (length <= 0) return;
    status[length] = 0;
    const char *sets[] = {"CapPrm:\t", "CapEff:\t", "CapBnd:\t"};
    for (int s = 0; s < 3; s++) {
        unsigned long long has = set_of(status, sets[s]);
        char what[128];
        snprintf(what, sizeof what, "%s %llx", sets[s], has & ~most);
        if (has & ~most) find("capability", what);
    }
}

/* trace SECONDS MOST-CAPABILITIES FILE-OF-THE-HOST HOST-NAMESPACE... */
static int trace(int count, char **words) {
    time_t end = time(NULL) + atoi(words[0]);
    unsigned long long most = strtoull(words[1], NULL, 16);
    long seen = 0;
    int last = 0;
    char own[32];
    snprintf(own, sizeof own, "%d", getpid());
    puts("tracing");
    fflush(stdout);
    while (time(NULL) < end) {
        DIR *all = opendir("/proc");
        struct dirent *one;
        while (all && (one = readdir(all))) {
            int pid = atoi(one->d_name);
            if (pid < 1 || !strcmp(one->d_name, own)) continue;
            char path[1024];
            snprintf(path, sizeof path, "/proc/%s/root%s", one->d_name, words[2]);
            if (!access(path, F_OK)) find("root", words[2]);
            namespaces(one->d_name, words + 3, count - 3);
            descriptors(one->d_name);
            capabilities(one->d_name, most);
            if (pid != last) seen++;
            last = pid;
        }
        if (all) closedir(all);
    }
    printf("saw %ld\n", seen);
    return 0;
}

/* Whether a text is in what a process has in memory. */
static int remembers(const char *pid, const char *text, size_t length) {
    char path[64], line[512];
    snprintf(path, sizeof path, "/proc/%s/mem", pid);
    int memory = open(path, O_RDONLY);
    snprintf(path, sizeof path, "/proc/%s/maps", pid);
    FILE *maps = fopen(path, "r");
    int found = 0;
    while (maps && memory >= 0 && !found && fgets(line, sizeof line, maps)) {
        unsigned long from, to;
        char may[8];
        if (sscanf(line, "%lx-%lx %7s", &from, &to, may) != 3 || may[1] != 'w') continue;
        char *copy = malloc(to - from);
        for (unsigned long at = from; copy && at < to; at += 4096)
            if (pread(memory, copy + (at - from), 4096, at) != 4096)
                memset(copy + (at - from), 0, 4096);
        found = copy && memmem(copy, to - from, text, length);
        if (copy) memset(copy, 0, to - from);
        free(copy);
    }
    if (maps) fclose(maps);
    if (memory >= 0) close(memory);
    return found;
}

/* A text the other way round: as it is given, it is in memory anyway. */
static char *backwards(const char *given) {
    size_t length = strlen(given);
    char *text = calloc(length + 1, 1);
    for (size_t i = 0; text && i < length; i++) text[i] = given[length - 1 - i];
    return text;
}

/* remember SECONDS SECRET KNOWN, both backwards: looks for them in the memory of every
 * new process, which is stopped for that and may have what is known. */
static int remember(char **words) {
    time_t end = time(NULL) + atoi(words[0]);
    char *secret = backwards(words[1]), *known = backwards(words[2]);
    long seen = 0, before = 0;
    int last = getpid();
    puts("remembering");
    fflush(stdout);
    while (secret && known && time(NULL) < end) {
        /* Numbers go up: the next process has the next one. */
        for (int pid = last + 1; pid < last + 16; pid++) {
            char number[16], exe[64], is[256];
            if (kill(pid, SIGSTOP)) continue;
            snprintf(number, sizeof number, "%d", pid);
            snprintf(exe, sizeof exe, "/proc/%d/exe", pid);
            int early = !link_of(exe, is, sizeof is) && strstr(is, "slipway");
            if (remembers(number, secret, strlen(secret))) find("memory", "a secret");
            before += early && remembers(number, known, strlen(known));
            kill(pid, SIGCONT);
            last = pid;
            seen++;
        }
    }
    printf("saw %ld, before their programs %ld\n", seen, before);
    return 0;
}

#ifdef __x86_64__
/* Has a stopped process make a system call, and gives its registers back. */
static long inject(int pid, long call, long first, long second) {
    struct user_regs_struct before, changed;
    int status;
    if (ptrace(PTRACE_GETREGS, pid, 0, &before)) return -1;
    changed = before;
    /* It stopped behind the instruction of the call that made it, two bytes long. */
    changed.rip -= 2;
    changed.rax = call;
    changed.orig_rax = -1;
    changed.rdi = first;
    changed.rsi = second;
    if (ptrace(PTRACE_SETREGS, pid, 0, &changed)) return -1;
    if (ptrace(PTRACE_SINGLESTEP, pid, 0, 0)) return -1;
    if (waitpid(pid, &status, __WALL) != pid || !WIFSTOPPED(status)) return -1;
    ptrace(PTRACE_GETREGS, pid, 0, &changed);
    ptrace(PTRACE_SETREGS, pid, 0, &before);
    return changed.rax;
}
#else
static long inject(int pid, long call, long first, long second) {
    (void)pid, (void)call, (void)first, (void)second;
    return -1;
}
#endif

/* Whether the process group of a process is one that is not seen from here. */
static int foreign_group(int pid) {
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int file = open(path, O_RDONLY);
    if (file < 0) return 0;
    ssize_t length = read(file, text, sizeof text - 1);
    close(file);
    if (length <= 0) return 0;
    text[length] = 0;
    char *end = strrchr(text, ')');
    int parent, group;
    return end && sscanf(end + 4, "%d %d", &parent, &group) == 2 && group == 0;
}

/* signal SECONDS: stops the process group that new processes are born in, from within. */
static int signal_group(char **words) {
    time_t end = time(NULL) + atoi(words[0]);
    long seen = 0, signalled = 0;
    int last = getpid(), status;
    puts("signalling");
    fflush(stdout);
    while (time(NULL) < end) {
        for (int pid = last + 1; pid < last + 16; pid++) {
            if (ptrace(PTRACE_SEIZE, pid, 0, 0)) continue;
            ptrace(PTRACE_INTERRUPT, pid, 0, 0);
            waitpid(pid, &status, __WALL);
            if (foreign_group(pid) && inject(pid, SYS_kill, 0, SIGSTOP) >= 0) signalled++;
            ptrace(PTRACE_DETACH, pid, 0, 0);
            kill(pid, SIGCONT);
            last = pid;
            seen++;
        }
    }
    printf("saw %ld, signalled %ld\n", seen, signalled);
    return 0;
}

/* keep SECONDS: traces new processes and leaves them unreaped when they end. */
static int keep(char **words) {
    time_t end = time(NULL) + atoi(words[0]);
    long kept = 0;
    int last = getpid();
    puts("keeping");
    fflush(stdout);
    while (time(NULL) < end)
        for (int pid = last + 1; pid < last + 16; pid++) {
            if (ptrace(PTRACE_SEIZE, pid, 0, 0)) continue;
            last = pid;
            kept++;
        }
    printf("kept %ld\n", kept);
    return 0;
}

/* lease FILE: whoever opens it waits. */
static int lease(char **words) {
    int file = open(words[0], O_RDWR | O_CREAT, 0644);
    if (file < 0 || write(file, "root:x:0:0::/:/bin/sh\n", 22) != 22) return perror(words[0]), 1;
    signal(SIGIO, SIG_IGN);
    if (fcntl(file, F_SETLEASE, F_WRLCK)) return perror("lease"), 1;
    puts("leased");
    fflush(stdout);
    for (;;) pause();
}

/* hold: writes to its output and has the pipe's lock from then on.
 * hold behind: says nothing, and has a child hold it that it leaves behind. */
static int hold(int behind) {
    int silent[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, silent)) return perror("socketpair"), 1;
    if (behind && fork()) return usleep(300000), 0;
    if (!behind && write(1, "held\n", 5) != 5) return 1;
    splice(silent[0], NULL, 1, NULL, 4096, 0);
    return 0;
}

static int put(const char *file, const char *text) {
    int open_file = open(file, O_WRONLY);
    int put = open_file >= 0 && write(open_file, text, strlen(text)) == (ssize_t)strlen(text);
    if (!put) perror(file);
    if (open_file >= 0) close(open_file);
    return put;
}

/* nest HIERARCHY DEPTH FROZEN EMPTY [CODE]: makes itself root of the container's cgroup in a
 * hierarchy, makes empty ones and nests that many below it, and has a process in the
 * deepest, frozen if that is 1. Stays, or ends with a code. */
static int nest(char **words) {
    int v2 = !strcmp(words[0], "v2");
    const char *options = v2 ? NULL : words[0];
    if (unshare(CLONE_NEWUSER)) return perror("user namespace"), 1;
    if (!put("/proc/self/setgroups", "deny") || !put("/proc/self/uid_map", "0 0 1")) return 1;
    if (!put("/proc/self/gid_map", "0 0 1")) return 1;
    if (unshare(CLONE_NEWNS | CLONE_NEWCGROUP)) return perror("namespaces"), 1;
    mkdir("/tmp", 0777);
    mkdir("/tmp/cg", 0777);
    if (mount("cg", "/tmp/cg", v2 ? "cgroup2" : "cgroup", 0, options)) return perror("mount"), 1;
    if (chdir("/tmp/cg")) return perror("/tmp/cg"), 1;
    char name[16];
    for (int empty = atoi(words[3]); empty > 0; empty--)
        if (snprintf(name, sizeof name, "e%d", empty) < 0 || mkdir(name, 0755)) return perror("empty"), 1;
    for (int depth = atoi(words[1]); depth > 0; depth--)
        if (mkdir("d", 0755) || chdir("d")) return perror("nest"), 1;
    int inside[2];
    if (pipe(inside)) return 1;
    if (!fork()) {
        if (put("cgroup.procs", "0") && write(inside[1], "i", 1) == 1) pause();
        return 1;
    }
    char byte;
    if (read(inside[0], &byte, 1) != 1) return 1;
    if (atoi(words[2]) && !put(v2 ? "cgroup.freeze" : "freezer.state", v2 ? "1" : "FROZEN")) return 1;
    puts("nested");
    fflush(stdout);
    if (words[4]) return atoi(words[4]);
    pause();
    return 0;
}

/* sibling SECONDS [SESSION]: has a child of its parent's, in a session of its own if
 * that is said, and stays with it. */
static int sibling(char **words) {
    long child = syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0);
    if (child < 0) return perror("clone"), 1;
    if (!child && words[1]) setsid();
    sleep(atoi(words[0]));
    return 0;
}

static long keyctl(long what, long a, long b, long c, long d) {
    return syscall(SYS_keyctl, what, a, b, c, d);
}

static void show(const char *what, long result) {
    if (result < 0)
        printf("%s: %s\n", what, strerror(errno));
    else
        printf("%s %ld\n", what, result);
}

static int read_key(long key) {
    char text[256];
    long length = keyctl(11, key, (long)text, sizeof text - 1, 0);
    if (length < 0) return printf("unreadable: %s\n", strerror(errno)), 1;
    text[length] = 0;
    printf("secret %s\n", text);
    return 0;
}

/* keys add NAME SECRET | keys session | keys search NAME | keys read KEY RING |
 * keys join NAME-OF-RING NAME */
static int keys(int count, char **words) {
    const long session = -3;
    if (!strcmp(words[0], "add"))
        show("key", syscall(SYS_add_key, "user", words[1], words[2], strlen(words[2]), session));
    if (!strcmp(words[0], "add") || !strcmp(words[0], "session"))
        show("ring", keyctl(0, session, 0, 0, 0));
    if (!strcmp(words[0], "search")) {
        long key = keyctl(10, session, (long)"user", (long)words[1], 0);
        return key < 0 ? (printf("unknown: %s\n", strerror(errno)), 1) : read_key(key);
    }
    if (!strcmp(words[0], "read") && count > 2) {
        /* Whoever links another's ring below his own possesses what is in it. */
        keyctl(8, atol(words[2]), session, 0, 0);
        keyctl(8, atol(words[1]), session, 0, 0);
        return read_key(atol(words[1]));
    }
    if (!strcmp(words[0], "join") && count > 2) {
        show("joined", keyctl(1, (long)words[1], 0, 0, 0));
        long key = keyctl(10, session, (long)"user", (long)words[2], 0);
        return key < 0 ? (printf("unknown: %s\n", strerror(errno)), 1) : read_key(key);
    }
    if (!strcmp(words[0], "wait")) pause();
    return 0;
}

int main(int count, char **words) {
    if (count > 5 && !strcmp(words[1], "trace")) return trace(count - 2, words + 2);
    if (count > 2 && !strcmp(words[1], "signal")) return signal_group(words + 2);
    if (count > 2 && !strcmp(words[1], "keep")) return keep(words + 2);
    if (count > 2 && !strcmp(words[1], "sibling")) return sibling(words + 2);
    if (count > 5 && !strcmp(words[1], "nest")) return nest(words + 2);
    if (count > 2 && !strcmp(words[1], "lease")) return lease(words + 2);
    if (count > 1 && !strcmp(words[1], "hold")) return hold(count > 2);
    if (count > 4 && !strcmp(words[1], "remember")) return remember(words + 2);
    if (count > 2 && !strcmp(words[1], "keys")) return keys(count - 2, words + 2);
    fprintf(stderr, "trace, remember, signal, keep, sibling, nest, lease, hold or keys\n");
    return 2;
}
