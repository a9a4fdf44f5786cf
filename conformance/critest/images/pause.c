/* Waits for the signal to end, and reaps what is orphaned meanwhile. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void leave(int signal)
{
	(void)signal;
	_exit(0);
}

static void reap(int signal)
{
	(void)signal;
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
}

int main(void)
{
	struct sigaction on_child = {.sa_handler = reap, .sa_flags = SA_NOCLDSTOP | SA_RESTART};

	sigaction(SIGCHLD, &on_child, NULL);
	signal(SIGTERM, leave);
	signal(SIGINT, leave);
	for (;;)
		pause();
}
