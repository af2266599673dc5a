/* Process 1 of every sandbox: starts the runtime process when told, reaps, reports how it ended, kills all on request.
 *
 * Static, allocates nothing, runs no tenant code. It is root of the sandbox's user namespace (an unprivileged id on
 * the host), keeps only the capabilities to change ids and to kill, and is of another user than the tenant's
 * processes, which therefore can neither signal nor trace it. Process 1 is no user code because the kernel ignores
 * default-action signals sent to it.
 *
 * argv: init FILTER_FD UID RUN_FD [GROUP_FD]; descriptor 3 is the SEQPACKET socket to the spawner. FILTER_FD holds the
 * compiled seccomp program. What is started lives in a group of its own: it is made inside the v2 group whose directory
 * is GROUP_FD, or joins by writing "0" into RUN_FD, a `tasks` or `cgroup.procs` file (on v2 the write waits for a
 * kernel-wide lock, 5 to 18 ms).
 *
 * From the spawner:  'S' u8 candidates, u8 arguments, u16 variables, then the strings, each with its NUL byte:
 *                        candidate paths, arguments, NAME=value; descriptor 0 of the packet is the output's pipe.
 *                    'K' kill every process of the sandbox but this one.
 * To the spawner:    'R'             ready
 *                    's' i32 errno   outcome of 'S': 0 started, else nothing runs
 *                    'x' i32 status  the runtime process ended (wait status)
 *                    'k'             outcome of 'K': nothing but process 1 is left
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CONTROL = 3, MESSAGE_MAX = 200 * 1024, STRINGS_MAX = 4096 };

static char message[MESSAGE_MAX];
static char *strings[STRINGS_MAX + 3];
static struct sock_filter filter[4096];
static struct sock_fprog program = { 0, filter };
static int run_fd, group_fd = -1;
static int tenant;
static pid_t runtime = -1;
static sigset_t original_mask;

static void die(int code) { _exit(code); }

static void say(char kind, int32_t value)
{
    char packet[5];
    packet[0] = kind;
    memcpy(packet + 1, &value, 4);
    if (send(CONTROL, packet, sizeof packet, MSG_NOSIGNAL) < 0)
        die(91);
}

static void limit(int resource, rlim_t soft, rlim_t hard)
{
    struct rlimit now;
    if (getrlimit(resource, &now) != 0)
        die(92);
    if (now.rlim_max != RLIM_INFINITY && (hard == RLIM_INFINITY || hard > now.rlim_max))
        hard = now.rlim_max; /* raising needs a capability that not every host gives */
    if (hard != RLIM_INFINITY && (soft == RLIM_INFINITY || soft > hard))
        soft = hard;
    struct rlimit wanted = { soft, hard };
    if (setrlimit(resource, &wanted) != 0)
        die(92);
}

/* Keeps exactly the capabilities in `mask`; the bounding set loses everything. */
static void keep_capabilities(uint64_t mask)
{
    struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
    struct __user_cap_data_struct data[2];
    int bounded;
    for (int capability = 0; (bounded = prctl(PR_CAPBSET_READ, capability, 0, 0, 0)) >= 0; capability++)
        if (bounded && prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0)
            die(93);
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    data[0].effective = data[0].permitted = (uint32_t)mask;
    data[1].effective = data[1].permitted = (uint32_t)(mask >> 32);
    data[0].inheritable = data[1].inheritable = 0;
    if (syscall(SYS_capset, &header, data) != 0)
        die(93);
}

/* The new process, up to exec. On failure its errno travels through `report`, which exec closes. */
static void become_runtime(int joined, int output, int report, int candidates, char **argv, char **envp)
{
    if (!joined && write(run_fd, "0", 1) != 1)
        goto fail;
    int adjust = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (adjust >= 0) { /* the tenant goes before process 1, which reports what happened */
        if (write(adjust, "500", 3) != 3)
            goto fail;
        close(adjust);
    }
    setsid();
    int null = open("/dev/null", O_RDWR);
    if (null < 0 || dup2(null, 0) < 0 || dup2(output, 1) < 0 || dup2(output, 2) < 0)
        goto fail;
    limit(RLIMIT_NOFILE, 1024, 1024);
    limit(RLIMIT_NPROC, 742, 742);
    limit(RLIMIT_CORE, 0, 0);
    limit(RLIMIT_MEMLOCK, 65536, 65536);
    limit(RLIMIT_STACK, 8388608, RLIM_INFINITY);
    limit(RLIMIT_RTPRIO, 0, 0);
    limit(RLIMIT_NICE, 0, 0);
    limit(RLIMIT_MSGQUEUE, 0, 0);
    umask(022);
    for (int number = 1; number < 65; number++)
        if (number != SIGKILL && number != SIGSTOP)
            signal(number, SIG_DFL);
    if (setgroups(0, NULL) != 0 || setresgid(tenant, tenant, tenant) != 0 || setresuid(tenant, tenant, tenant) != 0)
        goto fail;
    keep_capabilities(0);
    sigprocmask(SIG_SETMASK, &original_mask, NULL);
    if (chdir("/var/task") != 0)
        goto fail;
    /* Every descriptor but 0 to 2 goes; `report` and the ones above it go by close-on-exec at the latest. */
    if (report != 3 && dup3(report, 3, O_CLOEXEC) < 0)
        goto fail;
    report = 3;
    if (syscall(SYS_close_range, 4U, ~0U, 0U) != 0)
        goto fail;
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) != 0)
        goto fail;
    for (int i = 0; i < candidates; i++) {
        execve(strings[i], argv, envp);
        if (errno != ENOENT && errno != EACCES && errno != ENOTDIR)
            break;
    }
fail:;
    int32_t number = errno;
    if (write(report, &number, 4) != 4)
        die(94);
    die(95);
}

static void start(size_t length, int output)
{
    if (length < 5 || output < 0 || runtime != -1) {
        say('s', EBUSY);
        return;
    }
    int candidates = (uint8_t)message[1], arguments = (uint8_t)message[2];
    uint16_t variables;
    memcpy(&variables, message + 3, 2);
    int total = candidates + arguments + variables, filled = 0;
    char *at = message + 5, *end = message + length;
    if (total > STRINGS_MAX || candidates < 1 || arguments < 1) {
        say('s', E2BIG);
        return;
    }
    /* One array: candidates, NULL, arguments, NULL, variables, NULL. */
    for (int i = 0; i < total; i++) {
        char *nul = at < end ? memchr(at, 0, end - at) : NULL;
        if (nul == NULL) {
            say('s', EINVAL);
            return;
        }
        if (i == candidates || i == candidates + arguments)
            strings[filled++] = NULL;
        strings[filled++] = at;
        at = nul + 1;
    }
    if (variables == 0)
        strings[filled++] = NULL;
    strings[filled] = NULL;

    int pipe_fds[2];
    if (pipe2(pipe_fds, O_CLOEXEC) != 0) {
        say('s', errno);
        return;
    }
    int joined = 1;
    pid_t child = -1;
    if (group_fd >= 0) {
        struct clone_args arguments_of_clone = {
            .flags = CLONE_INTO_CGROUP, .exit_signal = SIGCHLD, .cgroup = (uint64_t)group_fd,
        };
        child = (pid_t)syscall(SYS_clone3, &arguments_of_clone, sizeof arguments_of_clone);
    }
    if (child < 0) {
        joined = 0;
        child = fork();
    }
    if (child == 0)
        become_runtime(joined, output, pipe_fds[1], candidates, strings + candidates + 1,
                       strings + candidates + 1 + arguments + 1);
    int32_t number = errno;
    close(pipe_fds[1]);
    if (child > 0) {
        ssize_t got = read(pipe_fds[0], &number, 4);
        if (got == 0)
            number = 0; /* exec closed it, or the child died before: the exit status will tell */
        if (number == 0)
            runtime = child;
        else
            while (waitpid(child, NULL, 0) < 0 && errno == EINTR) {
            }
    }
    close(pipe_fds[0]);
    say('s', number);
}

/* Collects ended children; says 'x' for the runtime. Returns 0 when no child is left. */
static int reap(int options)
{
    for (;;) {
        int status;
        pid_t pid = waitpid(-1, &status, options | __WALL);
        if (pid == 0)
            return 1;
        if (pid < 0) {
            if (errno == EINTR)
                continue;
            return 0;
        }
        if (pid == runtime) {
            runtime = -1;
            say('x', status);
        }
    }
}

static void serve_one(void)
{
    union { struct cmsghdr header; char space[CMSG_SPACE(sizeof(int))]; } control;
    struct iovec vector = { message, sizeof message };
    struct msghdr packet = { .msg_iov = &vector, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = sizeof control };
    ssize_t length = recvmsg(CONTROL, &packet, MSG_CMSG_CLOEXEC);
    if (length <= 0)
        die(0); /* the spawner is gone: end, and the kernel ends the whole namespace */
    int output = -1;
    struct cmsghdr *first = CMSG_FIRSTHDR(&packet);
    if (first != NULL && first->cmsg_level == SOL_SOCKET && first->cmsg_type == SCM_RIGHTS)
        memcpy(&output, CMSG_DATA(first), sizeof output);
    switch (message[0]) {
    case 'S':
        start((size_t)length, output);
        break;
    case 'K':
        /* One call under the task list's lock: a fork in flight sees its signal and fails, so none slips out. */
        kill(-1, SIGKILL);
        reap(0);
        say('k', 0);
        break;
    default:
        die(96);
    }
    if (output >= 0)
        close(output);
}

int main(int argc, char **argv)
{
    if (argc < 4)
        die(97);
    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        die(98);
    int filter_fd = atoi(argv[1]);
    tenant = atoi(argv[2]);
    run_fd = atoi(argv[3]);
    if (argc > 4)
        group_fd = atoi(argv[4]);
    ssize_t size = pread(filter_fd, filter, sizeof filter, 0);
    if (size <= 0 || size % sizeof filter[0] != 0)
        die(99);
    program.len = size / sizeof filter[0];
    close(filter_fd);
    keep_capabilities(1ULL << CAP_KILL | 1ULL << CAP_SETGID | 1ULL << CAP_SETUID);

    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGCHLD);
    sigprocmask(SIG_BLOCK, &mask, &original_mask);
    int signals = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
    if (signals < 0)
        die(90);
    fcntl(CONTROL, F_SETFD, FD_CLOEXEC);
    say('R', 0);
    struct pollfd watched[2] = { { CONTROL, POLLIN, 0 }, { signals, POLLIN, 0 } };
    for (;;) {
        if (poll(watched, 2, -1) < 0 && errno != EINTR)
            die(90);
        if (watched[1].revents) {
            struct signalfd_siginfo information;
            while (read(signals, &information, sizeof information) > 0) {
            }
            reap(WNOHANG);
        }
        if (watched[0].revents)
            serve_one();
    }
}
