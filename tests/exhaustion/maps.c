/* Loaded into the proxy by LD_PRELOAD: takes all memory maps that the kernel grants the
 * process (vm.max_map_count), at a signal, and gives them back. Nothing else makes a real
 * process as short of them: the sysctl is the machine's, and RLIMIT_AS binds the heap too. */
#define _GNU_SOURCE
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>

enum { PAGE = 4096 };
#define MOST (1L << 21)

static char *area;
static long taken;

static void take(int signal) {
    (void)signal;
    /* Neighbours of another protection are maps of their own. */
    while (taken < MOST
           && mprotect(area + taken * PAGE, PAGE, taken % 2 ? PROT_NONE : PROT_READ) == 0)
        taken++;
}

static void give(long left) {
    while (taken > left) {
        taken--;
        mprotect(area + taken * PAGE, PAGE, PROT_NONE);
    }
}

static void give_two(int signal) {
    (void)signal;
    /* A page that can be read has one of its own and splits what is around it. */
    give(taken > 2 ? taken - 2 : 0);
}

static void give_all(int signal) {
    (void)signal;
    give(0);
}

static void on(int signal, void (*handler)(int)) {
    struct sigaction action = { .sa_handler = handler, .sa_flags = SA_RESTART };
    sigfillset(&action.sa_mask);
    sigaction(signal, &action, NULL);
}

__attribute__((constructor)) static void prepare(void) {
    area = mmap(NULL, MOST * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    on(SIGRTMIN + 1, take);
    on(SIGRTMIN + 2, give_two);
    on(SIGRTMIN + 3, give_all);
}
