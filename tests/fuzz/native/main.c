/* The harness without a fuzzer: runs the files that are named, and says which verdicts came up.
 *
 * For any C compiler: so the corpus is replayed where libFuzzer is not, and where coverage is
 * measured. */
#include "harness.h"

int main(int count, char **names)
{
    for (int i = 1; i < count; i++) {
        FILE *file = fopen(names[i], "rb");
        CLAIM(file, "%s cannot be opened", names[i]);
        uint8_t buffer[1 << 16];
        size_t size = fread(buffer, 1, sizeof buffer, file);
        fclose(file);
        /* If this is the last line, it is the file to blame. */
        fprintf(stderr, "%s\n", names[i]);
        struct exact copy = exact_copy(buffer, size, 0);
        LLVMFuzzerTestOneInput(copy.bytes, size);
        exact_free(&copy);
    }
    printf("inputs %d\n", count - 1);
    for (int i = 0; i < PKTSTUN_VERDICTS; i++)
        if (verdicts_seen[i])
            printf("verdict %d %lu\n", i, verdicts_seen[i]);
    return 0;
}
