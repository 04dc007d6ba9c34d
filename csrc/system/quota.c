/* See quota.h.  Linux alone: /proc/self/cgroup names the groups, their files have the quota, in
 * version 2 "150000 100000" or "max 100000" microseconds in cpu.max, in version 1 cpu.cfs_quota_us,
 * -1 for none, and cpu.cfs_period_us.  A group is bound by those above it as well. */
#include "system/quota.h"

#include <stdio.h>
#include <string.h>

#define LONGEST 1024

/* the number that a file begins with, and the one behind it; what was read of them */
static int read_two(const char *folder, const char *name, double *first, double *second) {
    char path[2 * LONGEST];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "r");
    if (!f)
        return 0;
    const int found = fscanf(f, "%lf %lf", first, second);
    fclose(f);
    return found;
}

/* processors, rounded up, that a group may use by itself; 0: all */
static int quota_of(const char *folder) {
    double quota = 0, period = 0, none;
    if (read_two(folder, "cpu.max", &quota, &period) != 2 &&
        (read_two(folder, "cpu.cfs_quota_us", &quota, &none) != 1 ||
         read_two(folder, "cpu.cfs_period_us", &period, &none) != 1))
        return 0;
    if (!(quota > 0) || !(period > 0) || quota / period > 1e6)
        return 0;
    const int whole = (int)(quota / period);
    return whole + (quota > whole * period);
}

/* the least quota of the groups from mount/path up to the mount */
static int least_quota(const char *mount, const char *path) {
    char folder[LONGEST];
    int least = 0;
    const size_t shortest = strlen(mount);
    if ((size_t)snprintf(folder, sizeof folder, "%s%s", mount, path) >= sizeof folder)
        return 0;
    for (;;) {
        const int quota = quota_of(folder);
        least = quota && (!least || quota < least) ? quota : least;
        char *end = strrchr(folder, '/');
        if (!end || (size_t)(end - folder) < shortest)
            return least;
        *end = 0;
    }
}

/* whether a list such as "cpu,cpuacct" has the controller; an empty one is that of version 2 */
static int has_cpu(const char *list) {
    for (; list; list = strchr(list, ',')) {
        list += *list == ',';
        if (strncmp(list, "cpu", 3) == 0 && (list[3] == 0 || list[3] == ','))
            return 1;
    }
    return 0;
}

int fn_cpu_quota(const char *root) {
    char file[LONGEST], line[LONGEST], mount[LONGEST];
    int least = 0;
    snprintf(file, sizeof file, "%s/proc/self/cgroup", root);
    FILE *f = fopen(file, "r");
    while (f && fgets(line, sizeof line, f)) { /* "4:cpu,cpuacct:/path", or "0::/path" */
        line[strcspn(line, "\n")] = 0;
        char *list = strchr(line, ':'), *path = list ? strchr(list + 1, ':') : NULL;
        if (!path)
            continue;
        *path++ = 0;
        list++;
        if (*list && !has_cpu(list))
            continue;
        snprintf(mount, sizeof mount, "%s/sys/fs/cgroup%s%s", root, *list ? "/" : "", list);
        const int quota = least_quota(mount, path);
        least = quota && (!least || quota < least) ? quota : least;
    }
    if (f)
        fclose(f);
    return least;
}
