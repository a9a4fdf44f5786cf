/* Says which user the kernel made it: as a setuid file of root, 0, unless
 * privileges may not grow. */
#include <stdio.h>
#include <unistd.h>

int main(void)
{
	printf("Effective uid: %d\n", (int)geteuid());
	return 0;
}
