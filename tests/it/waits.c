#include <netdb.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>

static const char *name;
static int each;

static void *look(void *wait) {
    struct addrinfo hints = {0}, *found = NULL;
    struct timespec from, to;
    hints.ai_family = AF_UNSPEC;
    hints.ai_socktype = SOCK_STREAM;
    clock_gettime(CLOCK_MONOTONIC, &from);
    if (!getaddrinfo(name, NULL, &hints, &found)) freeaddrinfo(found);
    clock_gettime(CLOCK_MONOTONIC, &to);
    *(double *)wait = (to.tv_sec - from.tv_sec) + (to.tv_nsec - from.tv_nsec) / 1e9;
    return NULL;
}

static void *work(void *unused) {
    for (int i = 0; i < each; i++) {
        double wait;
        pthread_t fresh;
        if (pthread_create(&fresh, NULL, look, &wait)) exit(1);
        pthread_join(fresh, NULL);
        printf("%.6f\n", wait);
    }
    return unused;
}

int main(int count, char **words) {
    if (count != 4) return 2;
    name = words[1];
    int threads = atoi(words[2]);
    each = atoi(words[3]);
    pthread_t all[1000];
    for (int i = 0; i < threads; i++) if (pthread_create(&all[i], NULL, work, NULL)) return 1;
    for (int i = 0; i < threads; i++) pthread_join(all[i], NULL);
    return 0;
}
