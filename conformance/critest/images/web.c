/* The smallest web server that the suite's images need.
 *
 * Runs as /usr/sbin/nginx or /usr/sbin/httpd with the port as its argument. As
 * nginx it shows itself as "nginx: master process" and leaves its pid in
 * /var/run/nginx.pid, as specs look for both. Every request is answered with 200.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <libgen.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const char page[] = "<!DOCTYPE html>\n<html><body><h1>It works</h1></body></html>\n";

/* As the first process of a namespace, a signal without a handler is lost. */
static void leave(int signal)
{
	(void)signal;
	_exit(0);
}

static void fail(const char *name, const char *what)
{
	fprintf(stderr, "%s: %s: %s\n", name, what, strerror(errno));
	exit(1);
}

static int listen_on(const char *name, int port)
{
	int yes = 1, no = 0, fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
	struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(port)};

	if (fd >= 0) {
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof no);
		if (bind(fd, (struct sockaddr *)&six, sizeof six) == 0 && listen(fd, 64) == 0)
			return fd;
		close(fd);
	}
	fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		fail(name, "socket");
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
	if (bind(fd, (struct sockaddr *)&four, sizeof four) != 0 || listen(fd, 64) != 0)
		fail(name, "listen");
	return fd;
}

/* Reads until the blank line after the headers, for five seconds at most. */
static int read_request(int fd, char *request, size_t room)
{
	size_t used = 0;
	struct pollfd ready = {.fd = fd, .events = POLLIN};

	while (used + 1 < room && poll(&ready, 1, 5000) > 0) {
		ssize_t got = read(fd, request + used, room - used - 1);
		if (got <= 0)
			break;
		used += (size_t)got;
		request[used] = '\0';
		if (strstr(request, "\r\n\r\n"))
			return 1;
	}
	return 0;
}

static void answer(const char *name, int fd)
{
	char request[8192] = "", head[256];
	int length;

	if (!read_request(fd, request, sizeof request))
		return;
	request[strcspn(request, "\r\n")] = '\0';
	length = snprintf(head, sizeof head,
			  "HTTP/1.1 200 OK\r\nServer: %s\r\nContent-Type: text/html\r\n"
			  "Content-Length: %zu\r\nConnection: close\r\n\r\n",
			  name, sizeof page - 1);
	if (write(fd, head, (size_t)length) != length ||
	    write(fd, page, sizeof page - 1) != (ssize_t)(sizeof page - 1))
		fprintf(stderr, "%s: the client went away\n", name);
	printf("%s: 200 %s\n", name, request);
}

static void write_pid(const char *path)
{
	FILE *file = fopen(path, "w");

	if (!file || fprintf(file, "%d\n", (int)getpid()) < 0 || fclose(file) != 0)
		fail("nginx", path);
}

int main(int count, char **arguments)
{
	static char title[] = "nginx: master process /usr/sbin/nginx";
	const char *name = strncmp(arguments[0], "nginx:", 6) == 0 ? "nginx" : basename(arguments[0]);
	int port = count > 1 ? atoi(arguments[1]) : 80;
	int master = strcmp(name, "nginx") == 0;
	int fd;

	if (master && strcmp(arguments[0], title) != 0) {
		char *again[] = {title, arguments[1], NULL};
		execv("/usr/sbin/nginx", again);
		fail(name, "execute itself under its title");
	}
	signal(SIGTERM, leave);
	signal(SIGINT, leave);
	signal(SIGQUIT, leave);
	signal(SIGPIPE, SIG_IGN);
	setvbuf(stdout, NULL, _IOLBF, 0);
	fd = listen_on(name, port);
	if (master)
		write_pid("/var/run/nginx.pid");
	printf("%s: ready on port %d\n", name, port);
	for (;;) {
		int client = accept(fd, NULL, NULL);
		if (client < 0)
			continue;
		answer(name, client);
		close(client);
	}
}
