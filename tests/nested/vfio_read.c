/* Open the IOMMU group $1 by VFIO, and print the first four bytes of region 0 of its PCI device $2.
 * Source: the kernel's Documentation/driver-api/vfio.rst. */
#include <fcntl.h>
#include <linux/vfio.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

static int must(const char *what, int result)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
	return result;
}

int main(int count, char **arguments)
{
	struct vfio_group_status status = { .argsz = sizeof(status) };
	struct vfio_region_info region = { .argsz = sizeof(region), .index = VFIO_PCI_BAR0_REGION_INDEX };
	uint32_t word;
	int container, group, device;

	if (count != 3)
		return 2;
	container = must("/dev/vfio/vfio", open("/dev/vfio/vfio", O_RDWR));
	group = must(arguments[1], open(arguments[1], O_RDWR));
	must("status of the group", ioctl(group, VFIO_GROUP_GET_STATUS, &status));
	if (!(status.flags & VFIO_GROUP_FLAGS_VIABLE)) {
		fprintf(stderr, "the group is not viable\n");
		return 1;
	}
	must("set container", ioctl(group, VFIO_GROUP_SET_CONTAINER, &container));
	must("set IOMMU", ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1_IOMMU));
	device = must(arguments[2], ioctl(group, VFIO_GROUP_GET_DEVICE_FD, arguments[2]));
	must("region", ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &region));
	if (pread(device, &word, sizeof(word), region.offset) != sizeof(word)) {
		perror("read");
		return 1;
	}
	printf("register %#010x of %s\n", word, arguments[2]);
	return 0;
}
